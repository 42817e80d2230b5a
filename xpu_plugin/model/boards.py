# SPDX-License-Identifier: Apache-2.0
"""The boards that are known, as one table. A board that is not in it works by its own facts."""

from collections.abc import Iterable

from xpu_plugin.frozen import frozen


PCI_KL2 = 0x3684  # K-series too, and early parts of P800
PCI_KL2_VF = 0x3685
_GIB = 1 << 30
# Sizes of boards that can be split, for boards without a size of their own.
_SIZES = (16, 32, 64, 96, 128)


@frozen
class Board:
    """One kind of board."""

    name: str
    model: int | None = None  # the library's number of a card without VFs
    # The library's number of the PF of a card with VFs. The next ones are those of its VFs, by their number.
    sriov: int | None = None
    devices: range = range(0)  # PCI device ids that no other board has
    subsystem: int | None = None  # PCI subsystem of a KL2 device
    sizes: tuple[int, ...] = _SIZES  # GiB of main memory, ascending
    vfs: tuple[int, ...] | None = None  # numbers of VFs besides 0; None if unknown
    halves: bool = False  # one PCI function has two nodes, of which the minors' lowest bits differ
    ranked: bool = True  # the library's index is the rank of N
    handles: int | None = None  # maximum of nodes /dev/xpuN of one host, PFs included; None if unknown

    def profile(self, vfs: int, bytes_of_vf: int) -> str:
        """Return the name of a VF, `R200-VF-8G`: the board's size divided by its VFs, rounded as the vendor
        does.

        A VF reports up to a quarter less than its share: error correction takes an eighth, and older drivers
        omit 768 MiB more. So sizes are classes, not keys.
        """
        total = bytes_of_vf * vfs
        for size in (*self.sizes, *_SIZES):
            if 0 < total <= size * _GIB:
                return f"{self.name}-VF-{size // vfs}G"
        return f"{self.name}-VF-1OF{vfs}"


_THREE = (1, 2, 3)

# Sources: the vendor's headers and its driver for models, PCI ids and numbers of VFs of K and R boards;
# reports of users for P800. Library 4.0.12.1 reports models 0 to 4 and R200's split forms, and 9999 for all
# others. The driver's maximum of VFs is 3 for each KL2 board; R100, R420 and RM80 refuse every split.
BOARDS = (
    Board(name="K200", model=0, sizes=(8,), vfs=(), halves=True),
    Board(name="K100", model=1, sizes=(8,), vfs=()),
    Board(name="R200", model=2, sriov=200, subsystem=1, sizes=(16, 32), vfs=_THREE),
    Board(name="R300", model=3, sriov=204, subsystem=3, vfs=_THREE),
    Board(name="R200-8F", model=4, sriov=208, subsystem=4, vfs=_THREE),
    Board(name="R200-8FS", model=5, sriov=212, subsystem=5, vfs=_THREE),
    Board(name="R100", model=6, subsystem=2, vfs=()),
    Board(name="KL2-DEBUG", model=7),
    Board(name="R420", model=8, subsystem=6, vfs=()),
    Board(name="RG800", model=9, sriov=216, subsystem=7, vfs=_THREE),
    Board(name="RG800-PRO", model=10, sriov=220, subsystem=8, vfs=_THREE),
    Board(name="RM80", model=11, subsystem=3, vfs=()),
    # Profiles P800-VF-48G and P800-VF-24G. Of 32 nodes, 8 cards need 8.
    Board(name="P800", devices=range(0x3686, 0x368A), sizes=(96,), vfs=(2, 4), ranked=False, handles=32),
)
KL3 = Board(name="KL3", ranked=False)
"""The generation of P800, for a board of which only the library's number is known."""
KL3_MODELS = range(300, 600)
_BY_NAME = {board.name: board for board in BOARDS}
NAMES = frozenset((*_BY_NAME, KL3.name))


def known(
    device: int | None, subsystem: int | None, model: int | None, product: str | None = None
) -> Board | None:
    """Return the board with these facts, None for an unknown one.

    PCI ids come first. Where several boards share them, or they are unknown, the library's number and then
    its name of the product decide.

    product: such as `P800 OAM`
    """
    if device is not None:
        same = [board for board in BOARDS if device in board.devices or _is_kl2(board, device, subsystem)]
        if same:
            return next((board for board in same if _has(board, model)), same[0])
    if (numbered := next((board for board in BOARDS if _has(board, model)), None)) is not None:
        return numbered
    return _BY_NAME.get(product.split(" ", maxsplit=1)[0]) if product else None


def vfs_of(model: int | None) -> int | None:
    """Return the number of VFs that a model number states: 0 for a PF that has VFs, None for other models."""
    return next((vfs for board in BOARDS if (vfs := _split(board, model)) is not None), None)


def handle_limit(boards: Iterable[Board]) -> int | None:
    """Return the maximum of nodes of a host with these boards; None if unknown."""
    return min((board.handles for board in boards if board.handles is not None), default=None)


def _is_kl2(board: Board, device: int, subsystem: int | None) -> bool:
    return device in (PCI_KL2, PCI_KL2_VF) and subsystem is not None and board.subsystem == subsystem


def _has(board: Board, model: int | None) -> bool:
    return model is not None and (model == board.model or _split(board, model) is not None)


def _split(board: Board, model: int | None) -> int | None:
    """Return the number of VFs of this board that a model number states."""
    if model is None or board.sriov is None or not 0 <= model - board.sriov <= max(_THREE):
        return None
    return model - board.sriov
