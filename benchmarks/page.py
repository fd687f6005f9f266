"""Figures of the page: `.venv/bin/python benchmarks/page.py` after `python3 -m lib_tuner test` (it needs Playwright and Chromium). Prints JSON.

ready_s: from the browser's request to the page with its tabs drawn, median of seven loads. status_percent: part of one core that the server spends on the
status calls of one open page, counted in CPU seconds over a minute, beyond what it spends without a page. redraw_ms: the loss curve with 10,000 points.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
REDRAW = """() => {
    const canvas = document.createElement('canvas'), times = [];
    canvas.className = 'tuner-chart';
    document.querySelector('#tuner-live').append(canvas);
    const chart = new window.tuner.Chart(canvas, () => {});
    chart.points = Array.from({length: 10000}, (_, i) => [i + 1, 0.1 + 0.05 * Math.sin(i / 50) + 0.03 * ((i * 7919) % 101) / 101, 1e-4]);
    chart.steps = 10000;
    for (let i = 0; i < 15; i++) { const began = performance.now(); chart.draw(); times.push(performance.now() - began); }
    return times;
}"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(pid: int, seconds: float) -> float:
    """CPU seconds per second over a while."""
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def ready(page: Any, url: str) -> float:
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("#tuner-live [role=tablist]")
    return time.perf_counter() - began


def measure(url: str, pid: int) -> dict[str, float]:
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        loads = [ready(page, url) for _ in range(7)]
        redraw = statistics.median(page.evaluate(REDRAW))
        page.close()
        without = spent(pid, 60)
        page = browser.new_page()
        ready(page, url)
        page.evaluate("setInterval(() => window.tuner.refresh(), 1000)")  # the rate at which a page asks while a run goes
        time.sleep(5)
        with_page = spent(pid, 60)
        browser.close()
    return {"ready_s": round(statistics.median(loads), 2), "first_ready_s": round(loads[0], 2), "status_percent": round(100 * (with_page - without), 2), "redraw_ms": round(redraw, 1)}


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "lib_tuner", "ui", "--no-venv", "--no-browser", "--port", "0", "--out", home]
        server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+/", line)))
        try:
            print(json.dumps(measure(url, server.pid)))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
