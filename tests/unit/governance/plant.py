"""A made-up plant: its catalog, and a journal of a morning's work, the same on every run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securemfg.config import Weakening
from securemfg.governance.access import decide
from securemfg.governance.catalog import Catalog, load_catalog
from securemfg.governance.findings import Evidence, TrailSummary

CATALOG = """\
version: 3
organisation: {controller: Example Presses, dpo: dpo@example.com}
data_assets:
  - name: production_sensor_data
    sensitivity: confidential
    owner: line-2
    categories: [machine.telemetry]
    retention: P1Y
    roles:
      MLResearcher: [training, evaluation]
      DataEngineer: [ingest, preparation]
      Service: [inference]
  - name: press_recipes
    sensitivity: ip-sensitive
    categories: [process.recipe]
    roles: {ProcessEngineer: ["*"]}
  - name: operator_feedback
    sensitivity: pii
    subjects: [operators]
    legal_basis: legitimate-interests
    roles: {DataProtection: [read, preparation]}
  - name: maintenance_calendar
    sensitivity: internal
flows:
  - {from: press line 2, to: feature store, data: production_sensor_data, protocol: https, tls: 1.3, auth: mTLS}
  - {from: feature store, to: training, data: [production_sensor_data], protocol: postgresql, tls: 1.3,
     purpose: press failure model}
  - {from: training, to: model registry, data: [production_sensor_data], protocol: https, tls: 1.3}
"""
HEAD = "0192f3c8-7b1e-7"
WRITER = "press-gw-02-9f31c2d4-4711-a7c0"
START = datetime(2026, 11, 20, 6, 0, tzinfo=UTC)


def catalog(folder: Path, text: str = CATALOG) -> Catalog:
    path = folder / "data_flow.yaml"
    path.write_text(text, encoding="utf-8")
    return load_catalog(path)


class Morning:
    """Adds events, one every 23 seconds, in the shape the journal gives them."""

    def __init__(self, known: Catalog | None = None) -> None:
        self.catalog = known
        self.events: list[dict[str, Any]] = []

    def add(
        self, action: str, *, resource: str | None = None, outcome: str = "success", **fields: Any
    ) -> dict[str, Any]:
        number = len(self.events) + 1
        time = START + timedelta(seconds=23 * number)
        event = {
            "schema_version": 1,
            "event_id": f"{HEAD}{number:03x}-8000-{number:012x}",
            "writer": WRITER,
            "seq": number,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z"),
            "actor": {"type": "process", "id": "svc-train", "auth_method": "asserted"},
            "action": action,
            "outcome": outcome,
            "host": "press-gw-02",
        }
        if resource is not None:
            event["resource"] = {"type": "thing", "id": resource}
        event.update(fields)
        self.events.append(event)
        return event

    def step(
        self,
        name: str,
        stage: str,
        assets: tuple[str, ...],
        role: str | None,
        *,
        sensitivity: str = "confidential",
        connections: int = 4,
        artifacts: int = 3,
        auth_method: str = "asserted",
        versions: str = "TLSv1.3",
    ) -> None:
        decision = decide(self.catalog, role=role, action=stage, assets=assets, auth_method=auth_method)
        tags = {"step": name, "stage": stage, "sensitivity": sensitivity, "session": f"session-{name}"}
        tags["policy_version"] = decision.policy_version
        if not decision.allowed:
            self.add("access.denied", outcome="denied", reason=decision.reason, decision=decision.plain(), **tags)
            return
        self.add("step.started", decision=decision.plain(), **tags)
        self.add("credential.leased", resource="features-db", detail={"source": "vault", "ttl": 3600}, **tags)
        for number in range(artifacts):
            self.add(
                "artifact.encrypted",
                resource=f"models/{name}/part-{number}.bin",
                detail={"bytes": 48_213 * (number + 1), "suite": "0x0478", "key": "aws-kms:ai-artifacts", "frames": 2},
                **tags,
            )
        self.add(
            "step.finished",
            detail={
                "duration_ms": 8123,
                "tls_connections": connections,
                "tls_versions": versions,
                "tls_exceptions": 0,
                "artifacts_encrypted": artifacts,
            },
            **tags,
        )
        self.add("credential.revoked", resource="features-db", detail={"source": "vault", "how": "revoked"}, **tags)


def morning(known: Catalog) -> Morning:
    """About sixty events: work that went well, one refusal of each kind, and one weakened setting."""
    made = Morning(known)
    made.add("journal.opened", resource=WRITER)
    made.add("key.created", resource="aws-kms:ai-artifacts")
    made.step("collect-sensors", "ingest", ("production_sensor_data",), "DataEngineer")
    made.step("clean-signals", "preparation", ("production_sensor_data", "maintenance_calendar"), "DataEngineer")
    for name in ("train-press-failure", "train-bearing-wear"):
        made.step(name, "training", ("production_sensor_data",), "MLResearcher", artifacts=5, connections=11)
    made.step("read-recipes", "training", ("press_recipes",), "MLResearcher", sensitivity="ip-sensitive")
    made.step("evaluate-press-failure", "evaluation", ("production_sensor_data",), "MLResearcher", artifacts=2)
    made.step("mask-feedback", "preparation", ("operator_feedback",), "DataProtection", sensitivity="pii")
    made.step("predict-line-2", "inference", ("production_sensor_data",), "Service", auth_method="mtls", artifacts=1)
    for host in ("historian.plant.internal:1433", "old-mes.plant.internal:80"):
        made.add("tls.refused", resource=host, outcome="denied", reason="no TLS 1.3", step="collect-sensors")
    made.add(
        "tls.exception_used",
        resource="127.0.0.1:5000",
        detail={"entry": "loopback", "version": "none"},
        step="clean-signals",
    )
    made.add("artifact.refused", resource="models/old/model.pkl", outcome="denied", step="predict-line-2")
    made.add(
        "settings.weakened",
        resource="artifacts.plaintext_reads",
        detail={"value": "audit", "origin": "SECUREMFG_ARTIFACTS__PLAINTEXT_READS"},
        reason="unprotected artifacts are loaded",
    )
    made.add("model.predicted", resource="press-failure", step="predict-line-2")
    made.add("journal.closed", resource=WRITER)
    return made


def evidence(events: list[dict[str, Any]] | None = None, known: Catalog | None = None, **fields: Any) -> Evidence:
    return Evidence(
        **{
            "events": tuple(events or ()),
            "collected_at": datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
            "host": "press-gw-02",
            "catalog": known,
        }
        | fields
    )


def whole(folder: Path) -> Evidence:
    """The morning with everything around it: verification, settings and a weakening in force."""
    known = catalog(folder)
    events = morning(known).events
    return evidence(
        events,
        known,
        verification=TrailSummary(ok=True, strength="signed", events=len(events), tail=3, writers=1),
        settings=(
            ("mode", "enforce", "built-in"),
            ("audit.on_failure.internal", "degrade", "built-in"),
            ("audit.on_failure.pii", "fail_closed", "built-in"),
            ("audit.retention.inference", "90d", "built-in"),
            ("audit.retention.audit", "365d", "built-in"),
        ),
        weakenings=(
            Weakening(
                setting="tls.allow",
                value="historian.plant.internal",
                origin="pyproject.toml",
                meaning="TLS 1.2 is allowed to historian.plant.internal: replaced in spring",
            ),
        ),
    )
