"""Writes what the store keeps of rounds as text, each with a sum over it, and reads it back, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from adamd.wire.dtypes import ITEMSIZE
from adamd.wire.encodings import ENCODINGS
from adamd_service.records import BulkRef, Spec
from adamd_service.rounds.documents import (
    KINDS,
    ClosedBy,
    Counted,
    Evaluation,
    Failure,
    Frozen,
    KeptContribution,
    LeftOut,
    MemberName,
    RoundDocument,
    Standing,
)
from adamd_service.store import serialization
from adamd_service.store.serialization import checked, summed, unsummed


def contribution_text(one: KeptContribution) -> str:
    """Return a contribution as text, without its bytes."""
    members = {field.name: getattr(one, field.name) for field in fields(KeptContribution) if field.name != "bulk"}
    return summed({**members, **serialization.bulk_members(one.bulk)})


def contribution_from(name: bytes, raw: bytes) -> KeptContribution:
    """Read a contribution that is kept under this name.

    Raises:
        Damaged: it is damaged, or another's.

    """

    def read() -> KeptContribution:
        members = unsummed(json.loads(raw))
        bulk = serialization.bulk_from(members)
        present = members.pop("present")
        plain = {key: members[key] for key in members if key not in ("chunks", "extent")}
        one = KeptContribution(**plain, present=None if present is None else tuple(present), bulk=bulk)
        if one.member.text != name.decode() or one.kind not in KINDS or one.dtype not in ITEMSIZE:
            raise ValueError("name, kind or dtype")
        if one.encoding not in ENCODINGS or (one.bulk != BulkRef() and one.bulk.nbytes != one.nbytes):
            raise ValueError("encoding or length")
        return one

    return checked(f"the contribution {name.decode(errors='replace')}", read)


def _member_from(text: str) -> MemberName:
    """Read a contribution's name; raises ValueError where it is none."""
    number, _, client = text.partition(":")
    return MemberName(int(number), client)


def standing_from(spec: Spec, place: Sequence[bytes], waiting: bytes, fields_of: Mapping[bytes, bytes]) -> Standing:
    """Read where the open round stands.

    Args:
        spec: of the session; a round that nobody has asked for yet has its config, and is as old.
        place: incarnation, step, chain and the store's clock.
        waiting: how many contributions wait.
        fields_of: the round's hash; of an earlier round, or none, where nobody has asked for this one yet.

    Raises:
        Damaged: it is damaged.

    """

    def read() -> Standing:
        text = {name.decode(): value.decode() for name, value in fields_of.items()}
        incarnation, step, chain, now = (value.decode() for value in place)
        number = int(step) + 1
        if text.get("number") != str(number):
            config, opened_at = (spec.rounds or {}).get("config", {}), spec.created_at
            return Standing(number, incarnation, chain, int(step), opened_at, float(now), config, received=int(waiting))
        return Standing(
            number=number,
            incarnation=incarnation,
            chain=chain,
            step=int(step),
            opened_at=float(text["opened_at"]),
            now=float(now),
            config=json.loads(text["config"]),
            first_at=float(text["first_at"]) if text["first_at"] else None,
            tries=int(text["tries"]),
            cohort=_clients(text.get("cohort", "")),
            evaluators=_clients(text.get("evaluators", "")),
            drawn="drawn" in text,
            received=int(waiting),
            frozen=_frozen(text) if "token" in text else None,
            clip_norm=float(text["clip_norm"]) if text["clip_norm"] else None,
            failure=Failure(**unsummed(json.loads(text["failure"]))) if text.get("failure") else None,
        )

    return checked(f"the open round of session {spec.id}", read)


def _clients(text: str) -> tuple[str, ...] | None:
    return tuple(json.loads(text)) if text else None


def _frozen(text: Mapping[str, str]) -> Frozen:
    if text["why"] not in get_args(ClosedBy):
        raise ValueError(f"{text['why']!r} closes no round")
    members = tuple(sorted(_member_from(member) for member in json.loads(text["members"])))
    return Frozen(text["token"], text["why"], float(text["frozen_at"]), text["replica"], members)  # type: ignore[arg-type]  # looked at above


def document_from(number: int, raw: bytes) -> RoundDocument:
    """Read the document of a closed round; raises Damaged."""

    def read() -> RoundDocument:
        members = unsummed(json.loads(raw))
        if members["round"] != number:
            raise ValueError(f"the document of round {members['round']}")
        for name, record in (("evaluation", Evaluation), ("failure", Failure), ("left_out", LeftOut)):
            if members.get(name) is not None:
                members[name] = record(**members[name])
        contributions = tuple(Counted(**one) for one in members.pop("contributions"))
        return RoundDocument(**members, contributions=contributions)

    return checked(f"the document of round {number}", read)


def evaluation_text(num_examples: float, metrics: Mapping[str, Any]) -> str:
    """Return what a client measured as text."""
    return summed({"num_examples": num_examples, "metrics": dict(metrics)})


def evaluation_from(client: str, raw: bytes) -> tuple[str, float, Mapping[str, Any]]:
    """Read what a client measured: its name, number of examples, metrics; raises Damaged."""

    def read() -> tuple[str, float, Mapping[str, Any]]:
        members = unsummed(json.loads(raw))
        return client, float(members["num_examples"]), members["metrics"]

    return checked(f"the evaluation of {client}", read)
