# SPDX-License-Identifier: Apache-2.0
"""xpu-smi as a child: bounded in time and output, and never left running."""

import asyncio
from pathlib import Path

import pytest

from tests.support.waiting import PROMPT_SECONDS, until
from tests.support.xpu_smi import fake, printing
from xpu_plugin.edges.xpu_smi import LONGEST_OUTPUT, XpuSmi, XpuSmiError
from xpu_plugin.model.additions import XPU_VARIABLE


pytestmark = pytest.mark.usefixtures("leaves_no_process")


async def test_its_output_is_returned(place: Path) -> None:
    program = XpuSmi(path=printing(place, [0, 0]))
    assert (await program.matrix()).split()[:4] == [
        "XPU0",
        "XPU1",
        "NIC0",
        "CPU",
    ]


async def test_no_device_is_hidden_from_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(XPU_VARIABLE, "0")
    assert await XpuSmi(path=fake(place, f'echo "${XPU_VARIABLE}."')).matrix() == ".\n"


async def test_it_is_found_as_on_the_host_with_the_libraries_beside_it(place: Path) -> None:
    """XRE is a link to a directory with its release, and the host is mounted elsewhere."""
    bin = place / "host/usr/local/xpu-5.0/bin"
    bin.mkdir(parents=True)
    (place / "host/usr/local/xpu").symlink_to("/usr/local/xpu-5.0")
    fake(bin, 'echo "$LD_LIBRARY_PATH"')
    program = XpuSmi(path=place / "host/usr/local/xpu/bin/xpu-smi", host_root=place / "host")
    first, second, *_ = (await program.matrix()).strip().split(":")
    assert [first, second] == [f"{bin.parent}/lib64", f"{bin.parent}/lib"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo XPU0; exit 3", "exit status 3"),
        ("kill -9 $$", "exit status -9"),
        ("head -c 1000000 /dev/zero", f"more than {LONGEST_OUTPUT} bytes"),
        ("yes", f"more than {LONGEST_OUTPUT} bytes"),
    ],
)
async def test_a_program_that_fails_is_an_error_in_one_line(script: str, said: str, place: Path) -> None:
    program = fake(place, script)
    with pytest.raises(XpuSmiError) as error:
        await XpuSmi(path=program).matrix()
    assert str(error.value).startswith(f"{program}")
    assert said in str(error.value)


async def test_a_program_that_cannot_be_started_is_an_error(place: Path) -> None:
    with pytest.raises(XpuSmiError, match="No such file"):
        await XpuSmi(path=place / "none").matrix()
    (place / "plain").write_text("text")
    with pytest.raises(XpuSmiError, match="Permission denied"):
        await XpuSmi(path=place / "plain").matrix()


@pytest.mark.parametrize("script", ["sleep 1000", "exec >&-; sleep 1000", "echo XPU0; sleep 1000 & wait"])
async def test_a_program_that_hangs_is_ended_with_its_children_and_the_event_loop_goes_on(
    script: str, place: Path
) -> None:
    program = fake(place, script)
    asking = asyncio.ensure_future(XpuSmi(path=program).matrix(seconds=0.3))
    await asyncio.sleep(0)
    assert not asking.done()  # the loop runs meanwhile
    with pytest.raises(XpuSmiError, match="does not end within 0"):
        await asyncio.wait_for(asking, PROMPT_SECONDS)
    await until(lambda: not [own for own in Path("/proc").glob("[0-9]*") if _is_of(own, program)], "its end")


def _is_of(process: Path, program: Path) -> bool:
    try:
        return str(program).encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False
