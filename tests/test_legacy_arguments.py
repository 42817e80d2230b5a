# SPDX-License-Identifier: Apache-2.0
"""The arguments of the previous plugin's manifests: understood, with one warning for each."""

import pytest

from xpu_plugin.config import Config, read_config


def read_warned(*arguments: str, **environment: str) -> tuple[Config, list[str]]:
    config, _, warnings = read_config(arguments, environment)
    return config, warnings


def test_sriov_num_vfs_99_means_keep_with_one_warning() -> None:
    for config, warnings in (
        read_warned("--sriov-num-vfs=99"),
        read_warned("--sriov-num-vfs", "99"),
        read_warned(XPU_PLUGIN_SRIOV_NUM_VFS="99"),
    ):
        assert config.sriov_num_vfs is None
        assert len(warnings) == 1
        assert "keep" in warnings[0]


def test_keep_and_numbers_need_no_warning() -> None:
    assert read_warned("--sriov-num-vfs=keep") == (Config(sriov_num_vfs=None), [])
    assert read_warned("--sriov-num-vfs=63") == (Config(sriov_num_vfs=63), [])


@pytest.mark.parametrize("arguments", [["-sriov-num-vfs=3"], ["-sriov-num-vfs", "3"]])
def test_a_single_dash_is_accepted_with_one_warning(arguments: list[str]) -> None:
    config, warnings = read_warned(*arguments)
    assert config.sriov_num_vfs == 3
    assert warnings == ["-sriov-num-vfs is understood as --sriov-num-vfs; write --sriov-num-vfs"]


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize(("given", "meant"), [("", True), ("=true", True), ("=false", False)])
def test_use_detail_res_name_means_resource_per_profile(dashes: str, given: str, meant: bool) -> None:
    config, warnings = read_warned(f"{dashes}use-detail-resName{given}")
    assert config.resource_per_profile is meant
    assert len(warnings) == 1
    assert "--resource-per-profile" in warnings[0]


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize("name", ["pass-device-specs", "rename-dev", "use-fake-dev"])
@pytest.mark.parametrize("given", ["", "=true", "=false"])
def test_options_without_meaning_are_ignored_with_one_warning(dashes: str, name: str, given: str) -> None:
    config, warnings = read_warned(f"{dashes}{name}{given}")
    assert config == Config()
    assert len(warnings) == 1
    assert name in warnings[0]


def test_a_value_that_looks_like_an_option_of_the_previous_plugin_is_a_value() -> None:
    assert read_warned("--allow=-rename-dev") == (Config(allow=("-rename-dev",)), [])
