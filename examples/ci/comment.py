"""Comments the table of a run on a pull request: `python comment.py runs/ci/report.json`.

Needs only Python. Reads what GitHub's runners set: GITHUB_TOKEN, GITHUB_REPOSITORY,
GITHUB_EVENT_PATH and GITHUB_API_URL. A comment that it made before is changed, not repeated. The
table also goes into the job's summary (GITHUB_STEP_SUMMARY). `--print` only prints it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

MARK = "<!-- mirabelle -->"  # how the comment is found again
HEAD = ("stage", "runtime", "MACs", "file", "accuracy, 95 % interval", "p50", "speed-up")


def cell(value: Any) -> str:
    """Text that cannot end a cell or begin markup."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\|`*_<>[]#@" else c for c in text)


def row(stage: dict, runtime: str, seen: dict) -> list[str]:
    score, latency, faster = (seen.get(k) or {} for k in ("accuracy", "latency", "speedup"))
    share = score.get("binary", True)
    return [
        cell(stage.get("label", "")),
        cell(runtime),
        f"{stage['macs'] / 1e6:.1f} M" if stage.get("macs") is not None else "–",
        f"{seen['bytes'] / 1e6:.2f} MB" if seen.get("bytes") is not None else "–",
        "–" if score.get("value") is None else accuracy(score, share),
        f"{latency['p50_ms']:.3f} ms" if latency else "–",
        f"{faster['value']:.2f}×" if faster else "–",
    ]


def accuracy(score: dict, share: bool) -> str:
    scale = 100 if share else 1
    value, low, high = (scale * score[k] for k in ("value", "low", "high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def limit(found: dict) -> str:
    value = "not measured" if found.get("value") is None else f"{found['value']:.4g}"
    sign = "✅" if found.get("met") else "⚠️" if found.get("on_fail") == "warn" else "❌"
    return f"- {sign} {cell(found['name'])}: {value}, the limit is {found['limit']:g}"


def table(report: dict) -> str:
    """The comment, in Markdown."""
    rows = [
        row(stage, runtime, seen)
        for stage in report["stages"]
        for runtime, seen in stage["runtimes"].items()
    ]
    lines = [MARK, f"### Mirabelle: {cell(report.get('title') or 'a run')}", ""]
    lines += [" | ".join(["", *cells, ""]).strip() for cells in (HEAD, ["---"] * len(HEAD), *rows)]
    if found := report.get("limits"):
        lines += ["", *map(limit, found)]
    machine, versions = (report.get(k) or {} for k in ("machine", "versions"))
    where = [machine.get("cpu"), *(f"{k} {v}" for k, v in versions.items() if v)]
    lines += ["", f"Measured on {', '.join(cell(w) for w in where if w)}."]
    return "\n".join(lines) + "\n"


def call(method: str, url: str, token: str, body: dict | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/vnd.github+json",
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def post(text: str, environment: dict[str, str]) -> str:
    """Changes the comment that was made before, or makes one; returns its address."""
    event = json.loads(Path(environment["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    number = int(event["pull_request"]["number"])
    api = environment.get("GITHUB_API_URL", "https://api.github.com")
    issues = f"{api}/repos/{environment['GITHUB_REPOSITORY']}/issues"
    token, page = environment["GITHUB_TOKEN"], 1
    while True:
        old = call("GET", f"{issues}/{number}/comments?per_page=100&page={page}", token)
        for comment in old:
            if comment["body"].startswith(MARK):
                address = f"{issues}/comments/{int(comment['id'])}"
                return call("PATCH", address, token, {"body": text})["html_url"]
        if len(old) < 100:
            break
        page += 1
    return call("POST", f"{issues}/{number}/comments", token, {"body": text})["html_url"]


def main(arguments: list[str], environment: dict[str, str]) -> int:
    only_print = "--print" in arguments
    files = [a for a in arguments if not a.startswith("--")]
    if len(files) != 1:
        print("usage: comment.py [--print] report.json", file=sys.stderr)
        return 2
    if not Path(files[0]).is_file():
        print(f"{files[0]} is not there: the run ended before its report", file=sys.stderr)
        return 1
    text = table(json.loads(Path(files[0]).read_text(encoding="utf-8")))
    if only_print:
        print(text, end="")
        return 0
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as f:
            f.write(text)
    print(post(text, environment))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))
