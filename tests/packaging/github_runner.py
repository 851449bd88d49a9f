"""A runner for the shell steps of a composite GitHub Action: as much of GitHub's own as this repository's one needs.

Expressions are replaced in `env` and `value`; shell text must hold none, since what is in an input would become part of
the script. A step runs where its `if` holds, after a failed step only where that says always(). Steps that use another
action are left out.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """What a run left: the exit code of the step that failed, or 0; the summary; the action's outputs; all output."""

    code: int = 0
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""


def run(
    action: Mapping[str, Any],
    inputs: Mapping[str, str],
    cwd: Path,
    environment: Mapping[str, str],
    event: str = "push",
) -> Job:
    """Run the action's shell steps in `cwd`, with `environment` on top of this process's."""
    unknown = set(inputs) - set(action["inputs"])
    assert not unknown, unknown
    values = {f"inputs.{name}": str(entry.get("default", "")) for name, entry in action["inputs"].items()}
    values |= {f"inputs.{name}": value for name, value in inputs.items()}
    values |= {"github.event_name": event, "github.event.number": "7", "github.repository": "me/models"}
    values |= {"github.token": "a-token"}
    summary, job = cwd / ".summary", Job()
    summary.touch()
    for step in action["runs"]["steps"]:
        if "run" not in step or not holds(step.get("if", ""), values, failed=bool(job.code)):
            continue
        assert "${{" not in step["run"], step["name"]
        script, output = cwd / ".step.sh", cwd / ".output"
        script.write_text(step["run"])
        output.write_text("")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],  # what GitHub starts for `shell: bash`
            cwd=cwd,
            env={
                **os.environ,
                **environment,
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
                **{name: filled(str(text), values) for name, text in step.get("env", {}).items()},
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        job.code = job.code or done.returncode
        job.log += done.stdout + done.stderr
        for name, value in outputs(output.read_text()):
            values[f"steps.{step.get('id')}.outputs.{name}"] = value
    job.summary = summary.read_text()
    job.outputs = {name: filled(entry["value"], values) for name, entry in action["outputs"].items()}
    for path in (summary, cwd / ".step.sh", cwd / ".output"):
        path.unlink()
    return job


def holds(condition: str, values: Mapping[str, str], *, failed: bool) -> bool:
    """Whether a step runs: `always()`, and comparisons of one value with a text, joined by &&."""
    parts = [part.strip() for part in condition.split("&&") if part.strip()]
    if failed and "always()" not in parts:
        return False
    for part in parts:
        if part == "always()":
            continue
        match = re.fullmatch(r"([\w.-]+) (==|!=) '([^']*)'", part)
        assert match, part
        assert match[1] in values or match[1].startswith("steps."), match[1]
        if (values.get(match[1], "") == match[3]) != (match[2] == "=="):
            return False
    return True


def outputs(text: str) -> Iterator[tuple[str, str]]:
    """What a step wrote to $GITHUB_OUTPUT: lines NAME=VALUE, and NAME<<WORD, lines of the value, WORD."""
    lines = iter(text.splitlines())
    for line in lines:
        name, sign, value = re.fullmatch(r"([^=<]+)(=|<<)(.*)", line).groups()
        yield name, value if sign == "=" else "\n".join(iter(lambda: next(lines), value))


def commands(log: str) -> list[str]:
    """The workflow commands in a log, as the runner takes them: none between ::stop-commands::WORD and ::WORD::."""
    found, word = [], None
    for line in map(str.strip, log.splitlines()):
        if word is not None:
            word = None if line == f"::{word}::" else word
        elif line.startswith("::stop-commands::"):
            word = line.removeprefix("::stop-commands::")
        elif line.startswith("::") or "##[" in line:
            found.append(line)
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with every ${{ name }} and ${{ name || name }} replaced by its value; unknown inputs are an error."""

    def value(match: re.Match[str]) -> str:
        names = [name.strip() for name in match[1].split("||")]
        for name in names:
            assert name in values or name.startswith("steps."), name
        return next((values[name] for name in names if values.get(name)), "")

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)
