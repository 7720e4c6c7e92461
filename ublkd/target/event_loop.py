"""Where the ``async def`` methods of a BytesTarget run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from ublkd.target.group import Held


class EventLoop:
    """An event loop in a thread of its own."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ublk-asyncio", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, int | None], held: Held) -> None:
        """Run it, and answer with its result."""
        self._loop.call_soon_threadsafe(self._start, work, held)

    def _start(self, work: Coroutine[Any, Any, int | None], held: Held) -> None:
        task = self._loop.create_task(self._answer(work, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, work: Coroutine[Any, Any, int | None], held: Held) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                moved = await work
            held.complete(moved)
        except BaseException as error:
            held.fail(error)

    def close(self) -> None:
        """Cancel what is under way, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
