"""The project's sessions. `python3 noxfile.py -s demo` needs Python 3.11 and pip, nothing else.

Run as a script, this file finds nox or puts it into `.bootstrap/`, then hands over to it. Run by nox, it is
an ordinary noxfile. Environments lie in `.nox/` and are kept: they are installed anew when pyproject.toml
changes. The syntax stays that of Python 3.6, so that an old Python can say that it is too old.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

MINIMUM = (3, 11)
NOX = "nox>=2025.2.9"  # the first with everything used below
ROOT = Path(__file__).resolve().parent
BOOTSTRAP = ROOT / ".bootstrap"

# Nothing is written outside the checkout, unless the user names a cache of their own.
os.environ.setdefault("PIP_CACHE_DIR", str(BOOTSTRAP / "cache" / "pip"))
os.environ.setdefault("VIRTUALENV_OVERRIDE_APP_DATA", str(BOOTSTRAP / "cache" / "virtualenv"))


def start(arguments):
    """Hand over to nox with the same arguments. Does not return."""
    if sys.version_info[:2] < MINIMUM:
        newer = newer_python()
        if newer is None:
            sys.exit(
                f"securemfg needs Python 3.11 or newer, this is {sys.version.split()[0]} and PATH has no "
                "newer one: install Python 3.11 and run 'python3.11 noxfile.py'"
            )
        os.execv(newer, [newer, str(ROOT / "noxfile.py"), *arguments])
    python = sys.executable if has_nox() else bootstrap()
    os.execv(python, [python, "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), *(arguments or ["--list"])])


def newer_python():
    """A Python on PATH that is new enough, or None. Each is asked: a name may be a shim that runs nothing."""
    question = "import sys; sys.exit(sys.version_info[:2] < (3, 11))"
    for name in ("python3.12", "python3.13", "python3.11", "python3.14"):
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", question], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def has_nox():
    if importlib.util.find_spec("nox") is None:
        return False
    from importlib.metadata import version

    return tuple(int(part) for part in version("nox").split(".")[:2]) >= (2025, 2)


def bootstrap():
    """Put nox into its own environment once, and return that environment's Python."""
    python = BOOTSTRAP / "bin" / "python"
    stamp = BOOTSTRAP / "ready"
    wanted = f"{ROOT}\n{sys.executable}\n{sys.version}\n{NOX}"
    if not python.exists() or read(stamp) != wanted:
        print("noxfile: putting nox into .bootstrap/ (once, about 10 seconds)", flush=True)
        shutil.rmtree(str(BOOTSTRAP), ignore_errors=True)
        pip = make_environment(python)
        attempt([*pip, "install", "--disable-pip-version-check", NOX])
        stamp.write_text(wanted)
    return str(python)


def make_environment(python):
    """Make `.bootstrap/` with what this Python has. Returns the command that is its pip.

    Debian's python3 has venv but no ensurepip; with python3-pip, that pip can install into the environment.
    """
    if importlib.util.find_spec("ensurepip"):
        attempt([sys.executable, "-m", "venv", str(BOOTSTRAP)])
    elif importlib.util.find_spec("venv") and importlib.util.find_spec("pip"):
        attempt([sys.executable, "-m", "venv", "--without-pip", str(BOOTSTRAP)])
        return [sys.executable, "-m", "pip", "--python", str(python)]
    elif shutil.which("virtualenv"):
        attempt([shutil.which("virtualenv"), "--python", sys.executable, str(BOOTSTRAP)])
    else:
        sys.exit(
            f"noxfile: {sys.executable} has neither ensurepip nor pip, and virtualenv is not on PATH: no "
            "environment can be made; run 'apt-get install python3-venv' (Debian, Ubuntu) and try again"
        )
    return [str(python), "-m", "pip"]


def attempt(command):
    """Run a command quietly. When it fails, show what it said and end."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        shutil.rmtree(str(BOOTSTRAP), ignore_errors=True)
        said = "\n".join(done.stdout.decode(errors="replace").strip().splitlines()[-15:])
        sys.exit(f"{said}\nnoxfile: '{' '.join(command)}' failed (exit {done.returncode}), see above")


def read(path):
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    start(sys.argv[1:])

# From here on nox runs this file, on a Python that is new enough.

import nox  # noqa: E402

nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = []  # `nox` alone lists, as `python3 noxfile.py` does
nox.options.error_on_missing_interpreters = False  # `unit` runs where an interpreter exists, in CI too

# pyenv's own Pythons are not on PATH unless chosen, and `unit` wants each of them.
for folder in sorted(Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/3.1[1-9].*/bin")):
    os.environ["PATH"] += os.pathsep + str(folder)

PYPROJECT = ROOT / "pyproject.toml"
ONE_WORKER = "from securemfg.encryption.frames import parallel; assert not parallel(), 'cryptography is 50 or newer'"
PARALLEL = ("-n", "2", "--dist", "loadfile")  # a file's tests share their servers


def forget_moved_environments():
    """Environments hold absolute paths: those copied along with a checkout point at the original."""
    place = ROOT / ".nox" / "place"
    if place.parent.is_dir() and read(place) != str(ROOT):
        shutil.rmtree(place.parent)
    place.parent.mkdir(exist_ok=True)
    place.write_text(str(ROOT))


forget_moved_environments()


def install(session, *groups, project=True, takes="a few seconds"):
    """Install dependency groups, and the project in place, unless done already for this pyproject.toml."""
    if session.venv_backend == "none":  # --no-venv: whoever asks for it has installed everything
        return
    folder = Path(session.virtualenv.location)
    stamp = folder / "installed"
    wanted = hashlib.sha256(PYPROJECT.read_bytes() + repr((groups, project)).encode()).hexdigest()
    if read(stamp) == wanted:
        return
    listed = folder.resolve() / "requirements.txt"
    listed.write_text("\n".join(nox.project.dependency_groups(nox.project.load_toml(PYPROJECT), *groups)))
    session.log(f"installing what '{session.name}' needs: takes {takes} the first time")
    here = ("--editable", ".") if project else ()
    session.install("--quiet", *here, "-r", str(listed.relative_to(ROOT)))
    stamp.write_text(wanted)


@nox.session
def demo(session):
    """The whole loop on this machine: lease, encrypt, TLS 1.3, audit, verify, report."""
    install(session, "demo", takes="a minute or two")
    session.run("python", "-m", "securemfg", "demo", *session.posargs)


def run_pytest(session, *arguments):
    install(session, "tests", takes="one to three minutes")
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


@nox.session
def tests(session):
    """Every test. Arguments after -- go to pytest."""
    run_pytest(session, *PARALLEL)


@nox.session
def live(session):
    """Only the tests against real servers (OpenBao, MLflow, moto)."""
    run_pytest(session, "tests/live")


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def unit(session):
    """Unit and property tests on each Python that this machine has."""
    run_pytest(session, *PARALLEL, "tests/unit", "tests/property")


@nox.session
def old_cryptography(session):
    """Encryption with the oldest cryptography that is supported, which holds the GIL: the path of one worker."""
    install(session, "old-cryptography", takes="half a minute")
    session.run("python", "-c", ONE_WORKER)
    faults = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/fault/test_encryption_*.py"))
    places = ("tests/unit/encryption", "tests/property", "tests/vectors", *faults)
    session.run("python", "-m", "pytest", *PARALLEL, *places, *session.posargs)
    session.run("python", "-m", "pytest", "tests/unit/cli/test_doctor.py", "-k", "path", "-q")


def up_to(*newest):
    """A session's Python: the one that runs nox, or `newest` where that one is newer than what it tests can take."""
    return None if sys.version_info[:2] <= newest else "{}.{}".format(*newest)


def on_mlflow(session, *places):
    """The tests named, or tests/compat's workload, in an environment that is installed; says on which MLflow."""
    session.run("python", "-c", "import mlflow; print('MLflow', mlflow.__version__)")
    session.run("python", "-m", "pytest", *(places or ("tests/compat/test_mlflow_versions.py",)), *session.posargs)


@nox.session(python=up_to(3, 12))
def mlflow_2_8(session):
    """Encrypted artifacts on MLflow 2.8, the oldest that is supported. It has wheels up to Python 3.12."""
    install(session, "mlflow-2-8", takes="about a minute, 200 MB")
    on_mlflow(session)


@nox.session(python=up_to(3, 13))
def mlflow_2(session):
    """Encrypted artifacts on the newest MLflow 2."""
    install(session, "mlflow-2", takes="about a minute, 200 MB")
    on_mlflow(session)


@nox.session(python=up_to(3, 13))
def mlflow_3_12(session):
    """Encrypted artifacts on MLflow 3.12, which keeps cryptography below 47: the path of one worker."""
    install(session, "mlflow-3-12", takes="about a minute, 200 MB")
    session.run("python", "-c", ONE_WORKER)
    on_mlflow(session)


@nox.session
def mlflow_newest(session):
    """Encrypted artifacts on the newest MLflow that can be installed, unless session `tests` has had that one."""
    if session.venv_backend == "none":
        session.skip("it installs what is newest, and --no-venv installs nothing")
    report = Path(session.create_tmp()).resolve() / "report.json"
    session.run(
        *("python", "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", str(report), "mlflow"),
        silent=True,
    )
    chosen = {one["metadata"]["name"]: one["metadata"]["version"] for one in json.loads(report.read_text())["install"]}
    if list(ROOT.glob(".nox/tests/lib/python*/site-packages/mlflow-{}.dist-info".format(chosen["mlflow"]))):
        session.skip("session 'tests' is on MLflow {}, and nothing newer is there".format(chosen["mlflow"]))
    install(session, "compat", takes="about a minute, 200 MB")
    session.install("--quiet", "mlflow=={}".format(chosen["mlflow"]))
    on_mlflow(session)


@nox.session(python=up_to(3, 13))
def torch(session):
    """PyTorch's models, state dicts and checkpoints, encrypted.

    For Linux the package index has only the build with CUDA, which cannot be imported without CUDA's libraries. pip
    takes a CPU build of the same version when its configuration (find-links, extra-index-url) names a place with one.
    """
    install(session, "torch", takes="a minute, 0.4 GB with a CPU build that pip knows of; else minutes, 3 GB with CUDA")
    session.run("python", "-c", "import torch; print('PyTorch', torch.__version__)")
    tensors = "tests/unit/encryption/test_pipes.py::test_tensors_load_through_the_message_file"
    on_mlflow(session, "tests/compat/test_torch.py", f"{tensors}[torch]")


@nox.session(python=up_to(3, 13))
def tensorflow(session):
    """TensorFlow's and Keras's models and what autologging adds, encrypted."""
    install(session, "tensorflow", takes="one to two minutes, 0.5 GB")
    session.run("python", "-c", "import tensorflow; print('TensorFlow', tensorflow.__version__)")
    on_mlflow(session, "tests/compat/test_tensorflow.py")


def run_all(session, *commands):
    """Run each command even when one before it failed: the others still have something to say."""
    failed = []
    for command in commands:
        try:
            session.run(*command, env={"PYTHONPATH": "src"})
        except nox.command.CommandFailed:
            failed.append(" ".join(command[:3]))
    if failed:
        session.error(f"failed: {'; '.join(failed)}")


@nox.session
def lint(session):
    """ruff (rules and format) and the layers (import-linter)."""
    install(session, "lint", project=False)
    run_all(
        session,
        ("ruff", "check", "--output-format=concise"),
        ("ruff", "format", "--check"),
        ("lint-imports",),
    )


@nox.session
def types(session):
    """mypy, strict, on src; pyright on the public face as users write it."""
    install(session, "tests", "types", takes="one to three minutes")  # mypy reads what src imports
    run_all(session, ("python", "-m", "mypy"), ("python", "-m", "pyright", "tests/typing"))


@nox.session
def docs(session):
    """The documentation, strict: a dead link or an unknown name fails. `-- serve` shows it live."""
    install(session, "docs", project=False, takes="half a minute")
    command = session.posargs or ("build", "--strict", "--quiet")
    session.run("python", "-m", "mkdocs", *command, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session):
    """The measurements in benchmarks/, or those named after --. Figures go to benchmarks/results/."""
    install(session, "bench", takes="one to three minutes")
    scripts = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/bench_*.py"))
    named = session.posargs[:1] if session.posargs and session.posargs[0].endswith(".py") else scripts
    for script in named:  # a script's own arguments come after its name
        session.run("python", script, *session.posargs[1:])


@nox.session
def build(session):
    """sdist, and the wheel made from it, installed where nothing else is."""
    if session.venv_backend != "none":
        session.install("--quiet", "build", "virtualenv")
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    place.mkdir()
    session.run("python", "-m", "build", "--outdir", str(place / "dist"), silent=True)
    (wheel,) = (place / "dist").glob("*.whl")
    session.run("python", "-m", "virtualenv", "--quiet", str(place / "fresh"))
    python = str(place / "fresh" / "bin" / "python")
    session.log(f"installing {wheel.name} into an empty environment: takes half a minute")
    session.run(python, "-m", "pip", "install", "--quiet", str(wheel), external=True, silent=True)
    with session.chdir(place):  # so that the package is the installed one, not the checkout's
        session.run(python, "-c", "import securemfg; print(securemfg.__file__)", external=True)
        session.run(str(place / "fresh" / "bin" / "securemfg"), "--help", external=True)
