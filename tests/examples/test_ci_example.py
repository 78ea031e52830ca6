"""The example for GitHub: its script comments the table once, and its workflow is sound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from mirabelle.cli import main
from tests.report.pages import EXAMPLE

CI = Path(__file__).parents[2] / "examples" / "ci"


class Hub(BaseHTTPRequestHandler):
    """The three calls of GitHub's API that the script makes."""

    comments: list[dict]
    calls: list[tuple[str, str, str]]

    def answer(self, found):
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def heard(self):
        size = int(self.headers.get("Content-Length") or 0)
        self.calls.append((self.command, self.path, self.headers["Authorization"]))
        return json.loads(self.rfile.read(size)) if size else None

    def do_GET(self):
        self.heard()
        page = int(self.path.rpartition("=")[2])
        self.answer(self.comments[100 * (page - 1) : 100 * page])

    def do_POST(self):
        made = {"id": len(self.comments), "html_url": "new", **self.heard()}
        self.comments.append(made)
        self.answer(made)

    def do_PATCH(self):
        body = self.heard()
        found = self.comments[int(self.path.rpartition("/")[2])]
        found.update(body)
        self.answer({**found, "html_url": "changed"})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    handler = type("Fresh", (Hub,), {"comments": [], "calls": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler
    server.shutdown()
    server.server_close()


def script(*arguments, **environment):
    line = [sys.executable, str(CI / "comment.py"), *map(str, arguments)]
    return subprocess.run(
        line, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_the_script_comments_and_then_changes_its_comment(hub, tmp_path):
    server, handler = hub
    handler.comments += [{"id": i, "body": f"comment {i}"} for i in range(100)]
    (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
    environment = {
        "GITHUB_TOKEN": "secret",
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_EVENT_PATH": str(tmp_path / "event.json"),
        "GITHUB_API_URL": f"http://127.0.0.1:{server.server_port}",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    for said in ("new", "changed"):
        done = script(EXAMPLE, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == said
    assert len(handler.comments) == 101
    body = handler.comments[100]["body"]
    assert "| quantized, int8 | onnxruntime |" in body and "4.20×" in body
    assert "✅ accuracy\\_drop: 0.0031, the limit is 0.005" in body
    assert "❌ size\\_ratio: 10.8, the limit is 12" in body
    assert {c[2] for c in handler.calls} == {"Bearer secret"}
    assert ("POST", "/repos/owner/name/issues/7/comments", "Bearer secret") in handler.calls
    assert (tmp_path / "summary.md").read_text() == 2 * body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len({r.count("|") for r in rows}) == 1, "every row has as many cells"


def test_what_a_run_is_called_cannot_become_markup(tmp_path):
    report = json.loads(EXAMPLE.read_text())
    report["title"] = "a|b <img> @team"
    report["stages"][0]["label"] = "x | y"
    (tmp_path / "report.json").write_text(json.dumps(report))
    done = script("--print", tmp_path / "report.json")
    assert done.returncode == 0 and "a\\|b \\<img\\> \\@team" in done.stdout
    assert "| x \\| y |" in done.stdout


def test_a_run_without_a_report_is_said(tmp_path):
    done = script(tmp_path / "report.json")
    assert done.returncode == 1 and "ended before its report" in done.stderr
    assert script().returncode == 2


def test_the_workflow_calls_commands_that_there_are(capsys):
    workflow = yaml.safe_load((CI / "mirabelle.yml").read_text())
    (job,) = workflow["jobs"].values()
    lines = [line.strip() for s in job["steps"] for line in s.get("run", "").splitlines()]
    called = [line.split()[1] for line in lines if line.startswith("mirabelle ")]
    assert called == ["run", "certify"]
    for name in called:
        assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--resume" in shown and "--folder" in shown
    assert any("comment.py runs/ci/report.json" in line for line in lines)
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
