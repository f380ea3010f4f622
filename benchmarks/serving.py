"""How many answers a server gives to many clients at once, against one client at a time, in one run on loopback.

    python benchmarks/serving.py --clients 32 --seconds 120

Each client asks one of a few drawn pictures for a phrase in it, over and over, with the stock client of OpenAI. Errors
other than 429 end the run. Prints the rates of both parts, their ratio, latencies (p50, p99), and how far memory grew.
"""

from __future__ import annotations

import argparse
import base64
import io
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openai
import uvicorn
from PIL import Image

import segue
from segue.demo import challenges
from segue.serve.app import create_app
from segue.serve.settings import Limits, Settings

PICTURES = 4


@dataclass
class Count:
    """What clients have met with; latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(port=port, rows=args.rows, limits=Limits(waiting=args.clients))
    app = create_app(segue.load(args.model), settings, model="served")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not app.state.context.scheduler.is_ready:
        time.sleep(0.1)
    try:
        asked = questions()
        ask_for(3.0, 1, asked, port)  # so that both parts find a server that is warm
        alone = ask_for(args.seconds / 2, 1, asked, port)
        before = memory()
        together = ask_for(args.seconds, args.clients, asked, port)
        rates = [len(alone.latencies) / (args.seconds / 2), len(together.latencies) / args.seconds]
        print(f"one at a time: {rates[0]:.2f} answers a second, p50 {percentile(alone, 50):.2f} s")
        print(
            f"{args.clients} clients: {rates[1]:.2f} answers a second, p50 {percentile(together, 50):.2f} s, "
            f"p99 {percentile(together, 99):.2f} s, {together.refused} told to come later"
        )
        print(f"ratio {rates[1] / rates[0]:.2f}; memory grew by {(memory() - before) / 2**20:.0f} MiB")
    finally:
        server.should_exit = True
        thread.join()


def questions() -> list[list[dict]]:
    """One question about each of a few drawn pictures."""
    found = []
    for seed in range(PICTURES):
        still, _ = challenges(seed)
        file = io.BytesIO()
        Image.fromarray(still.scene.frames[0]).save(file, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        text = f"Please segment {still.phrases[0].words['en']} in this image."
        parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": text}]
        found.append([{"role": "user", "content": parts}])
    return found


def ask_for(seconds: float, clients: int, asked: list[list[dict]], port: int) -> Count:
    """Have so many clients ask for so long."""
    count, end, failures = Count(), time.monotonic() + seconds, list[Exception]()

    def ask(number: int) -> None:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            while time.monotonic() < end and not failures:
                began = time.monotonic()
                try:
                    client.chat.completions.create(model="served", messages=asked[number % len(asked)])
                    count.latencies.append(time.monotonic() - began)
                except openai.RateLimitError:
                    count.refused += 1
                    time.sleep(0.5)
                except openai.APIError as error:
                    failures.append(error)
                number += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        raise failures[0]
    return count


def percentile(count: Count, share: int) -> float:
    return float(np.percentile(count.latencies, share)) if count.latencies else float("nan")


def memory() -> int:
    """Bytes of this process in main memory, with what it maps from files."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
