# SPDX-License-Identifier: Apache-2.0
"""Additions to each container with devices, as the administrator chooses them: environment and host files."""

from collections.abc import Mapping

from xpu_plugin.frozen import frozen


XPU_VARIABLE, CUDA_VARIABLE = "XPU_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
"""The devices that a program in the container uses, as positions among those of the container, from 0. The
latter is read by CUDA-compatible stacks. Without both a program uses all of them."""
LIBRARY_VARIABLE = "LD_LIBRARY_PATH"
OFF = "off"
VARIABLES: Mapping[str, tuple[str, ...]] = {
    OFF: (),
    "xpu": (XPU_VARIABLE,),
    "cuda": (CUDA_VARIABLE,),
    "both": (XPU_VARIABLE, CUDA_VARIABLE),
}
"""The choices, and the variables of each."""


@frozen
class Additions:
    """The additions. variables: the names of those with the positions of the devices"""

    variables: tuple[str, ...] = ()
    library_path: str | None = None

    def environment(self, devices: int) -> dict[str, str]:
        """Return the variables of a container with so many devices."""
        positions = ",".join(map(str, range(devices)))
        libraries = {} if self.library_path is None else {LIBRARY_VARIABLE: self.library_path}
        return dict.fromkeys(self.variables, positions) | libraries


NOTHING = Additions()
