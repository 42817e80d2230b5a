# SPDX-License-Identifier: Apache-2.0
"""The other side of a hand-over, as a test wants it: each line is sent and awaited by hand."""

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Any

from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.handover import Door, Line, Peer, connected


class Other:
    """One end of the connection."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    @classmethod
    async def ask(cls, state: Path) -> "Other":
        """Connect to a plugin that has the lock."""
        peer: Peer | None = None
        for _ in range(int(SECONDS / 0.05)):
            if (peer := await connected(state)) is not None:
                break
            await asyncio.sleep(0.05)
        assert peer is not None
        return cls(peer)

    async def hello(self, **fields: object) -> None:
        usual = {"protocol": 1, "pod": "other", "version": "1", "resources": [], "able": True}
        await self.say("hello", **{**usual, **fields})

    async def say(self, word: str, **fields: object) -> None:
        await self.peer.send(word, fields)

    async def hear(self, word: str) -> Line:
        """The next line, which has to be this one."""
        async with asyncio.timeout(SECONDS):
            line = await self.peer.receive()
        assert line.say == word, line
        return line

    async def until(self, step: str) -> None:
        """Go through the steps of a taker up to the one that waits for this line of the giver."""
        await self.hello()
        for said, answer in (("", "quiet"), ("ready", "frozen")):
            if said:
                await self.say(said)
            await self.hear(answer)
            if answer == step:
                return

    def close(self) -> None:
        self.peer.close()


class Predecessor:
    """A plugin with the lock, by hand."""

    def __init__(self, plugins: Path, state: Path) -> None:
        self.lock = os.open(plugins, os.O_RDONLY)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.door = Door(state)
        self.held = True
        self.callers: list[Other] = []

    async def caller(self) -> tuple[Other, dict[str, Any]]:
        """The next caller that can serve; the others are told that we serve."""
        while True:
            async with asyncio.timeout(SECONDS):
                other = Other(await self.door.caller())
                self.callers.append(other)
                line = await other.hear("hello")
            if line.fields["able"]:
                return other, dict(line.fields)
            await other.say("refused", why="unable", serving=True)
            other.close()

    async def until_streaming(self) -> Other:
        """Go through the steps of a giver until the taker has shown its streams."""
        other, _ = await self.caller()
        await other.say("quiet", serving=True)
        await other.hear("ready")
        await other.say("frozen", grants={}, due={})
        await other.hear("registering")
        await other.hear("streaming")
        return other

    async def done(self, other: Other) -> None:
        await other.peer.send("done", descriptor=self.lock)
        self.die()

    def die(self) -> None:
        if self.held:
            self.held = False
            os.close(self.lock)

    async def close(self) -> None:
        self.die()
        for other in self.callers:
            other.close()
        await self.door.close()


async def gone(other: Other) -> None:
    """Wait until the other process has ended its side."""
    await until(lambda: other.peer.ended, "the end of the connection")
