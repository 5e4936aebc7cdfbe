"""Everything that MLflow's client can send away, once with the plugin off and once with it on, each value with a word
of its own (tests/parts/canary.py). A process of its own: `python -m tests.parts.workload JOB`, a JSON file with

tracking, location   where MLflow writes, and the artifact location of its experiment (or null)
inputs               a folder for the user's own files, which nobody searches
passes               a list of [token, on]: on is whether it happens inside a step of sensitivity `confidential`
result               where to write, for each token, the kinds that were used and what was read back

What a user's files hold (`inputs`) and what was read (`result`) is plaintext by nature: keep both out of the search.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image
from sklearn.linear_model import LogisticRegression

import securemfg
from securemfg import workflow
from tests.parts.canary import number, word
from tests.parts.workload_genai import GenAI

REQUIREMENTS = ["scikit-learn", "cloudpickle", "skops"]  # given, so that MLflow does not start a process to infer them


class Recipe(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A pyfunc model with a secret of its own, a file, a setting and a module beside it."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def load_context(self, context: Any) -> None:
        self.recipe = Path(context.artifacts["recipe"]).read_text()

    def predict(self, context: Any, model_input: list[str]) -> list[str]:
        return [f"{text} {self.secret} {self.recipe} {context.model_config['setting']}" for text in model_input]


class Workload:
    """One pass. `word` and `number` make a canary and remember that it was used."""

    def __init__(self, token: str, inputs: Path, location: str | None) -> None:
        self.token = token
        self.inputs = inputs / token
        self.inputs.mkdir()
        self.location = location
        self.client = MlflowClient()
        self.kinds: set[str] = set()
        self.texts: dict[str, str] = {}  # canaries that are not words: numbers, digests
        self.genai = GenAI(self.word, token)

    def word(self, kind: str) -> str:
        self.kinds.add(kind)
        return word(kind, self.token)

    def passing(self, kind: str) -> str:
        """A word that is overwritten at once: nobody can be sure to find it, but it must not be left either."""
        return word(kind, self.token)

    def number(self, kind: str) -> float:
        self.texts[kind] = f"{number(kind, self.token):.0f}"
        return number(kind, self.token)

    def file(self, name: str, text: str) -> str:
        path = self.inputs / name
        path.write_text(text)
        return str(path)

    # -- out --------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        sys.argv[0] = self.word("source-name") + ".py"
        os.environ["LOGNAME"] = self.word("user")
        self.experiment()
        with mlflow.start_run(
            run_name=self.passing("run-name-first"),
            description=self.word("run-description"),
            tags={
                self.word("tag-key"): self.word("run-tag"),
                "mlflow.source.git.commit": self.word("git-commit"),
                "mlflow.source.git.repoURL": self.word("git-repository"),
                "mlflow.source.git.branch": self.word("git-branch"),
                "mlflow.project.entryPoint": self.word("entry-point"),
            },
        ) as run:
            self.run_id = run.info.run_id
            self.values()
            self.values_of_the_client()
            self.files()
            self.pictures()
            self.datasets()
            self.sklearn_model()
            self.pyfunc_model()
            self.other_models()
            self.registry()
        self.autolog()
        self.evaluate()
        self.genai.write()
        mlflow.flush_async_logging()
        mlflow.flush_artifact_async_logging()
        mlflow.flush_trace_async_logging()

    def experiment(self) -> None:
        name = self.word("experiment-name")
        self.experiment_id = mlflow.create_experiment(
            name,
            artifact_location=self.location and f"{self.location}/{self.token}",
            tags={self.word("experiment-tag-key"): self.word("experiment-tag")},
        )
        mlflow.set_experiment(name)
        mlflow.set_experiment_tag("owner", self.word("experiment-tag-set"))
        mlflow.set_experiment_tags({"line": self.word("experiment-tags-set")})
        self.client.set_experiment_tag(self.experiment_id, "plant", self.word("experiment-tag-client"))
        mlflow.set_experiment_tag("mlflow.note.content", self.word("experiment-description"))

    def values(self) -> None:
        mlflow.log_param(self.word("param-key"), self.word("param"))
        mlflow.log_params({"alloy": self.word("params"), "grade": [1, self.word("param-in-list")]})
        mlflow.log_param("long", "L" * 5900 + self.word("param-long"))
        mlflow.log_param("short", 7)
        mlflow.log_metric(self.word("metric-key"), self.number("metric-value"), step=3)
        mlflow.log_metrics({"accuracy": 0.5, "loss": self.number("metrics-value")}, step=1)
        mlflow.set_tag("shift", self.word("tag"))
        mlflow.set_tags({"batch": self.word("tags")})
        mlflow.set_tag("long", "L" * 7900 + self.word("tag-long"))
        mlflow.set_tag("changed", self.passing("tag-before"))
        mlflow.set_tag("changed", self.word("tag-after"))
        mlflow.set_tag("removed", self.passing("tag-removed"))
        mlflow.delete_tag("removed")
        mlflow.log_param("async", self.word("param-async"), synchronous=False)
        mlflow.log_params({"asyncs": self.word("params-async")}, synchronous=False)
        mlflow.set_tag("async", self.word("tag-async"), synchronous=False)
        mlflow.log_metric("async", 1.5, synchronous=False)
        mlflow.flush_async_logging()

    def values_of_the_client(self) -> None:
        client = self.client
        client.log_param(self.run_id, "client", self.word("param-client"))
        client.set_tag(self.run_id, "client", self.word("tag-client"))
        client.log_metric(self.run_id, "client", self.number("metric-client"))
        client.log_batch(
            self.run_id,
            metrics=[Metric("batch", self.number("metric-batch"), 1, 0)],
            params=[Param("batch", self.word("param-batch"))],
            tags=[RunTag("in-batch", self.word("tag-batch"))],
        )
        client.log_batch(self.run_id, params=[Param("queued", self.word("param-queued"))], synchronous=False)
        client.log_text(self.run_id, self.word("text-client"), "client/note.txt")
        client.log_dict(self.run_id, {"recipe": self.word("dict-client")}, "client/recipe.json")
        client.update_run(self.run_id, name=self.word("run-name"))
        other = client.create_run(
            self.experiment_id, run_name=self.word("run-name-client"), tags={"client": self.word("run-tag-client")}
        )
        client.set_terminated(other.info.run_id)

    def files(self) -> None:
        mlflow.log_text(self.word("text"), f"{self.word('artifact-name')}.txt")
        mlflow.log_text(f"nested {self.word('text-nested')}", f"{self.word('artifact-folder')}/deep/note.txt")
        mlflow.log_dict({"recipe": self.word("dict")}, "recipe.json")
        mlflow.log_dict({"recipe": self.word("dict-yaml")}, "recipe.yaml")
        mlflow.log_table(pd.DataFrame({"name": [self.word("table")], "torque": [41.5]}), "table.json")
        mlflow.log_table({"name": [self.word("table-append")], "torque": [42.5]}, "table.json")
        mlflow.log_artifact(self.file("plan.csv", f"a,b\n1,{self.word('artifact')}\n"), "plans")
        folder = self.inputs / "folder"
        (folder / "sub").mkdir(parents=True)
        np.savez_compressed(folder / "array.npz", names=np.array([self.word("artifacts")]))
        (folder / "sub" / "b.csv").write_text(f"x\n{self.word('artifacts-nested')}\n")
        (folder / "empty").write_bytes(b"")
        mlflow.log_artifacts(str(folder), "bundle")

    def pictures(self) -> None:
        mpl.rcParams["svg.fonttype"] = "none"  # letters, not outlines
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1, 2])
        axes.set_title(self.word("figure"))
        mlflow.log_figure(figure, "figure.svg")
        mlflow.log_image(picture(self.word("image")), "image.png")
        mlflow.log_image(
            Image.fromarray(picture(self.word("image-step"))), key=self.word("image-key"), step=2, synchronous=True
        )
        mlflow.log_image(picture(self.word("image-async")), key="camera", step=0)
        mlflow.flush_artifact_async_logging()

    def datasets(self) -> None:
        frame = pd.DataFrame({self.word("dataset-column"): [1.0, 2.0], "wear": [3.0, 4.0]})
        source = self.file(f"{self.word('dataset-source')}.csv", frame.to_csv(index=False))
        table = mlflow.data.from_pandas(frame, source=source, name=self.word("dataset-name"), targets="wear")
        self.texts["dataset-digest"] = table.digest
        mlflow.log_input(
            table,
            context=self.word("dataset-context"),
            tags={self.word("dataset-tag-key"): self.word("dataset-tag")},
        )
        array = mlflow.data.from_numpy(
            {self.word("dataset-feature"): np.arange(6.0)}, name=self.word("dataset-numpy-name"), source=source
        )
        mlflow.log_inputs([array], contexts=["testing"], tags_list=[{"numpy": self.word("dataset-tag-numpy")}])

    def sklearn_model(self) -> None:
        frame = pd.DataFrame({self.word("model-column"): [0.0, 1.0, 2.0, 3.0], "wear": [1.0, 1.0, 2.0, 2.0]})
        labels = [self.word("model-label"), "good"] * 2
        self.frame = frame
        model = LogisticRegression().fit(frame, labels)
        self.sklearn = mlflow.sklearn.log_model(
            model,
            name=self.word("logged-model-name"),
            signature=mlflow.models.infer_signature(frame, model.predict(frame)),
            input_example=frame.head(2).assign(wear=self.number("input-example")),
            metadata={"origin": self.word("model-metadata")},
            code_paths=[self.file("steps.py", f"# {self.word('code')}\n")],
            extra_files=[self.file("extra.txt", self.word("extra-file"))],
            params={"depth": self.word("logged-model-param")},
            tags={self.word("logged-model-tag-key"): self.word("logged-model-tag")},
            model_type=self.word("logged-model-type"),
            pip_requirements=REQUIREMENTS,
        )

    def pyfunc_model(self) -> None:
        module = f"alloy_{self.token}"
        (self.inputs / "package").mkdir()
        code = self.file("package/__init__.py", f"NAME = {self.word('code-package')!r}\n")
        os.rename(os.path.dirname(code), self.inputs / module)
        self.pyfunc = mlflow.pyfunc.log_model(
            name="recipe",
            python_model=Recipe(self.word("pyfunc-state")),
            artifacts={"recipe": self.file("recipe.txt", self.word("pyfunc-artifact"))},
            model_config={"setting": self.word("pyfunc-config")},
            input_example=[self.word("pyfunc-example")],
            code_paths=[str(self.inputs / module)],
            pip_requirements=REQUIREMENTS,
        )

    def other_models(self) -> None:
        model_id = self.sklearn.model_id
        mlflow.set_logged_model_tags(model_id, {"audited": self.word("logged-model-tag-set")})
        self.client.set_logged_model_tags(model_id, {"client": self.word("logged-model-tag-client")})
        mlflow.log_metric("model-accuracy", self.number("logged-model-metric"), model_id=model_id)
        mlflow.log_model_params({"later": self.word("logged-model-param-set")}, model_id)
        external = mlflow.create_external_model(
            name=self.word("external-model-name"),
            params={"depth": self.word("external-model-param")},
            tags={"stage": self.word("external-model-tag")},
        )
        self.client.log_model_artifact(external.model_id, self.file("card.md", self.word("external-model-artifact")))
        self.external_id = external.model_id

    def registry(self) -> None:
        client = self.client
        self.name = self.word("registered-model-name")
        client.create_registered_model(
            self.name,
            tags={self.word("registered-model-tag-key"): self.word("registered-model-tag")},
            description=self.word("registered-model-description"),
        )
        version = client.create_model_version(
            self.name,
            self.sklearn.model_uri,
            run_id=self.run_id,
            tags={self.word("version-tag-key"): self.word("version-tag")},
            description=self.word("version-description"),
            model_id=self.sklearn.model_id,
        )
        client.set_registered_model_alias(self.name, self.word("alias"), version.version)
        client.set_registered_model_tag(self.name, "line", self.word("registered-model-tag-set"))
        client.set_model_version_tag(self.name, version.version, "line", self.word("version-tag-set"))
        registered = mlflow.register_model(
            self.pyfunc.model_uri, self.word("registered-by-uri"), tags={"by": self.word("version-tag-register")}
        )
        client.update_registered_model(registered.name, description=self.word("registered-model-description-set"))
        client.update_model_version(registered.name, "1", description=self.word("version-description-set"))
        self.copied = self.word("copied-model-name")
        client.copy_model_version(f"models:/{self.name}@{self.word('alias')}", self.copied)

    def autolog(self) -> None:
        label = self.word("autolog-param")
        mlflow.sklearn.autolog(log_input_examples=True, silent=True, extra_tags={"autolog": self.word("autolog-tag")})
        try:
            frame = pd.DataFrame({self.word("autolog-column"): [self.number("autolog-example"), 1.0, 2.0, 3.0]})
            LogisticRegression(class_weight={label: 2.0, "good": 1.0}).fit(frame, [label, "good"] * 2)
        finally:
            mlflow.sklearn.autolog(disable=True)
        self.autolog_run = mlflow.last_active_run().info.run_id

    def evaluate(self) -> None:
        frame = pd.DataFrame({"torque": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "wear": [1.0] * 6})
        labels = [self.word("evaluation-label"), "good", "worn"] * 2
        model = LogisticRegression().fit(frame, labels)
        with mlflow.start_run(run_name="evaluation") as run:
            info = mlflow.sklearn.log_model(model, name="evaluated", pip_requirements=REQUIREMENTS)
            data = frame.assign(**{self.word("evaluation-target"): labels})
            self.evaluation = mlflow.models.evaluate(
                info.model_uri,
                data,
                targets=self.word("evaluation-target"),
                model_type="classifier",
                evaluators="default",
                evaluator_config={"log_explainer": False, "log_model_explainability": False},
            )
            mlflow.log_metric("rows", len(frame))
        self.evaluation_run = run.info.run_id

    # -- in ---------------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        """What the same calls return to someone with the key, in words that do not depend on ids and times."""
        return {
            **self.read_values(),
            **self.read_files(),
            **self.read_models(),
            **self.read_registry(),
            **self.genai.read(),
        }

    def read_values(self) -> dict[str, Any]:
        run = mlflow.get_run(self.run_id)
        found = mlflow.search_runs([self.experiment_id], f"attributes.run_id = '{self.run_id}'").iloc[0]
        experiment = mlflow.get_experiment(self.experiment_id)
        by_name = self.client.search_experiments(filter_string=f"name = '{experiment.name}'")[0]
        inputs = sorted(run.inputs.dataset_inputs, key=lambda item: item.dataset.name)
        return {
            "params": run.data.params,
            "metrics": run.data.metrics,
            "tags": own(run.data.tags),
            "description": run.data.tags["mlflow.note.content"],
            "search_runs": {key: found[key] for key in ("params.alloy", "params.long", "tags.shift", "tags.long")},
            "experiment": [experiment.name, experiment.tags["mlflow.note.content"], own(experiment.tags)],
            "search_experiments": own(by_name.tags),
            "datasets": [[i.dataset.name, i.dataset.schema, i.dataset.profile] for i in inputs],
            "dataset sources": [i.dataset.source for i in inputs],
            "dataset tags": [{tag.key: tag.value for tag in i.tags} for i in inputs],
            "autolog": mlflow.get_run(self.autolog_run).data.params["class_weight"],
            "autolog tags": mlflow.get_run(self.autolog_run).data.tags["autolog"],
        }

    def read_files(self) -> dict[str, Any]:
        root = f"runs:/{self.run_id}"
        bundle = Path(mlflow.artifacts.download_artifacts(f"{root}/bundle"))
        svg = mlflow.artifacts.load_text(f"{root}/figure.svg")
        plan = Path(mlflow.artifacts.download_artifacts(run_id=self.run_id, artifact_path="plans/plan.csv"))
        names = {info.path for info in mlflow.artifacts.list_artifacts(run_id=self.run_id)}
        evaluated = self.client.list_artifacts(self.evaluation_run)
        classes = Path(mlflow.artifacts.download_artifacts(f"runs:/{self.evaluation_run}/per_class_metrics.csv"))
        return {
            "names": sorted(names),
            "text": mlflow.artifacts.load_text(f"{root}/{self.word('artifact-name')}.txt"),
            "nested": mlflow.artifacts.load_text(f"{root}/{self.word('artifact-folder')}/deep/note.txt"),
            "client": mlflow.artifacts.load_dict(f"{root}/client/recipe.json"),
            "dict": mlflow.artifacts.load_dict(f"{root}/recipe.json"),
            "table": mlflow.load_table("table.json", run_ids=[self.run_id]).to_dict("list"),
            "figure": re.findall(r"CANARY-[a-z-]+-\w+", svg),
            "image": bytes(np.asarray(mlflow.artifacts.load_image(f"{root}/image.png"))).decode().rstrip("\0"),
            "plan": plan.read_text(),
            "array": str(np.load(bundle / "array.npz")["names"]),
            "bundle": (bundle / "sub" / "b.csv").read_text(),
            "evaluation names": sorted(info.path for info in evaluated),
            "evaluation classes": classes.read_text(),
        }

    def read_models(self) -> dict[str, Any]:
        alias = f"models:/{self.name}@{self.word('alias')}"
        uris = {
            "id": self.sklearn.model_uri,
            "run": f"runs:/{self.run_id}/{self.word('logged-model-name')}",
            "version": f"models:/{self.name}/1",
            "alias": alias,
            "copy": f"models:/{self.copied}/1",
        }
        logged = mlflow.get_logged_model(self.sklearn.model_id)
        external = mlflow.get_logged_model(self.external_id)
        info = mlflow.models.get_model_info(alias)
        example = mlflow.models.Model.load(alias).load_input_example()
        searched = mlflow.search_logged_models([self.experiment_id], output_format="list")
        recipe = mlflow.pyfunc.load_model(self.pyfunc.model_uri)
        return {
            "predictions": {
                name: list(mlflow.sklearn.load_model(uri).predict(self.frame)) for name, uri in uris.items()
            },
            "pyfunc": list(mlflow.pyfunc.load_model(alias).predict(self.frame)),
            "recipe": recipe.predict(["melt"]),
            "signature": info.signature.to_dict(),
            "metadata": info.metadata,
            "example": example.to_dict("list"),
            "logged model": [logged.name, logged.model_type, own(logged.tags), logged.params],
            "external model": [external.name, own(external.tags), external.params],
            "search_logged_models": sorted(model.params["depth"] for model in searched if "depth" in model.params),
        }

    def read_registry(self) -> dict[str, Any]:
        model = self.client.get_registered_model(self.name)
        version = self.client.get_model_version_by_alias(self.name, self.word("alias"))
        found = self.client.search_registered_models(filter_string=f"name = '{self.name}'")[0]
        versions = self.client.search_model_versions(f"name = '{self.copied}'")
        other = self.client.get_registered_model(self.word("registered-by-uri"))
        return {
            "registered": [model.description, own(model.tags), found.description, own(found.tags)],
            "version": [version.description, own(version.tags)],
            "copied": [[v.description, own(v.tags)] for v in versions],
            "updated": [other.description, self.client.get_model_version(other.name, "1").description],
        }


def own(tags: dict[str, str]) -> dict[str, str]:
    """The tags that a user set: not MLflow's and not ours."""
    return {key: value for key, value in sorted(tags.items()) if not key.startswith(("mlflow.", "securemfg."))}


def picture(text: str) -> np.ndarray[Any, Any]:
    """A picture whose pixels spell `text`."""
    raw = text.encode()
    raw += b"\0" * (-len(raw) % 3)
    return np.frombuffer(raw, dtype=np.uint8).reshape(1, -1, 3)


@contextlib.contextmanager
def logging_to(path: str) -> Iterator[None]:
    """Every log record of this process, of the user's libraries too, goes to one file."""
    handler = logging.FileHandler(path)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("securemfg").setLevel(logging.DEBUG)  # MLflow's own DEBUG prints what it is called with
    yield
    handler.close()


def main(job: dict[str, Any]) -> None:
    mlflow.set_tracking_uri(job["tracking"])
    result: dict[str, Any] = {}
    with logging_to(job["log"]):
        for token, on in job["passes"]:
            work = Workload(token, Path(job["inputs"]), job["location"])
            step: Callable[[], Any] = contextlib.nullcontext
            if on:
                step = lambda: securemfg.step("training", sensitivity="confidential")  # noqa: E731
            with step():
                work.write()
            workflow.reset()  # keys are forgotten: what follows reads as another process would
            with step():
                read = work.read()
                mlflow.end_run()  # MLflow starts one to note which prompts were loaded
            result[token] = {"kinds": sorted(work.kinds), "texts": work.texts, "read": read, "run": work.run_id}
    text = io.StringIO()
    json.dump(result, text, default=str)
    Path(job["result"]).write_text(text.getvalue())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
