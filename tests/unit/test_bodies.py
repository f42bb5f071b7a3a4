"""The output of a process: paused pipes stay paused, those opened meanwhile too."""

import asyncio
import os

from meshrun.supervisor.bodies import _Output


def test_a_pipe_opened_while_the_output_is_paused_waits_too() -> None:
    async def check() -> None:
        taken: list[bytes] = []
        come = asyncio.Event()

        def take(_stream: str, lines: list[bytes]) -> None:
            taken.extend(lines)
            come.set()

        output = _Output(take)
        output.pause()
        write_end = output.open("stdout")
        os.write(write_end, b"line\n")
        for _ in range(3):
            await asyncio.sleep(0)  # turns of the loop, in which a reader would be called
        assert taken == []
        output.resume()
        await come.wait()
        assert taken == [b"line"]
        output.discard()
        os.close(write_end)

    asyncio.run(check())
