"""The judge of a storm over rounds folds what clients sent, in plain NumPy.

The closed rounds' documents say what counts. It talks to no server. Aggregate and clip are written here once more; the optimizer is the readable reference.
"""

import numpy as np

from adamd_service.optim import ReferenceKernel, State, apply, parse_settings, plan
from adamd_service.rounds.rules import REMEMBERED
from chaos.contributors import SIZES, sent
from chaos.journal import Verdict, digest


class RoundsJudge:
    """Follows one session's rounds as they are closed, while its clients go on."""

    def __init__(self, journal, start, optimizer, clip_norm, max_weight):
        self.journal, self.clip_norm, self.max_weight = journal, clip_norm, max_weight
        self.settings = parse_settings(optimizer)
        self.bounds = np.cumsum([0, *SIZES.values()]).tolist()
        flat = np.concatenate([start[name] for name in SIZES])
        self.state = State.fresh(flat, len(SIZES), self.settings)
        self.digests = [digest(flat)]  # by step
        self.rows = {}  # (round, client) to its row in the round's document

    @property
    def step(self):
        """The step that it has come to."""
        return len(self.digests) - 1

    def fold(self, documents):
        """Make the steps of these closed rounds, one after the other; returns what is wrong with them."""
        verdict, who = Verdict(), self.journal.name
        for document in documents:
            wrong = self._misnumbered(document)
            if wrong:
                verdict.twice.append(f"{who}: round {document.round} {wrong}")
                break
            for row in document.contributions:
                key = document.round, row.client
                if key in self.rows:
                    verdict.twice.append(f"{who}: {row.client} counts twice in round {document.round}")
                elif key not in self.journal.attempted:
                    verdict.twice.append(f"{who}: {row.client} counts in round {document.round}, and sent nothing")
                elif not row.counted or row.staleness:
                    verdict.lost.append(f"{who}: {row.client} is left out of round {document.round}: {row}")
                else:
                    self.rows[key] = row
            if not verdict.good:
                break
            self._apply(document, verdict)
        return verdict

    def _misnumbered(self, document):
        if document.round != self.step + 1:
            return f"comes after step {self.step}"
        if (document.state, document.step, document.base_step) != ("closed", document.round, document.round - 1):
            return f"is {document.state}, made step {document.step} of step {document.base_step}"
        return ""

    def compare(self, step, parameters):
        """Return the verdict on a server's parameters at a step that was folded, and on every answer so far."""
        verdict, who = Verdict(), self.journal.name
        found = digest(np.concatenate([np.asarray(parameters[name]).reshape(-1) for name in SIZES]))
        if step > self.step:
            verdict.lost.append(f"{who}: the server is at step {step}, and has documents of {self.step} rounds")
        elif found != self.digests[step]:
            verdict.bits.append(f"{who}: the parameters of step {step}")
        with self.journal.lock:
            answers = list(self.journal.answers)
        for one in answers:
            said = f"{who}: {one.client} in round {one.round} was answered {one.outcome}, counted {one.counted}"
            unknown = one.counted is None and one.current - one.round <= REMEMBERED
            if one.outcome not in ("accepted", "duplicate", "too_late") or unknown:
                verdict.lost.append(said)
            elif one.round > self.step:
                continue  # not closed when the documents were read
            elif one.counted and (one.round, one.client) not in self.rows:
                verdict.lost.append(f"{said}, and is not in the round's document")
            elif one.counted is False and (one.round, one.client) in self.rows:
                verdict.twice.append(f"{said}, and is in the round's document")
            elif one.pulled != self.digests[one.round - 1]:
                verdict.bits.append(f"{said}, and was made from other parameters")
        return verdict

    def _apply(self, document, verdict):
        pulled = {
            name: self.state.params[start:stop].copy()
            for name, start, stop in zip(SIZES, self.bounds, self.bounds[1:], strict=False)
        }
        total = {name: np.zeros(size, np.float64) for name, size in SIZES.items()}
        weights = dict.fromkeys(SIZES, 0.0)
        for row in sorted(document.contributions, key=lambda row: row.client):
            mine = sent(self.journal.seed, row.client, document.round)
            gradient = mine.gradient(pulled)
            weight = min(mine.num_examples, self.max_weight)
            norm = float(np.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in gradient.values())))
            if (row.weight, row.num_examples, row.clipped) != (weight, mine.num_examples, norm > self.clip_norm):
                verdict.bits.append(f"{self.journal.name}: round {document.round} says {row}; weight {weight}")
            elif not np.isclose(row.norm, norm, rtol=1e-12):
                verdict.bits.append(f"{self.journal.name}: round {document.round} says {row}; norm {norm!r}")
            factor = weight * (self.clip_norm / row.norm if row.clipped else 1.0)
            for name, part in gradient.items():
                total[name] += factor * part.astype(np.float64)
                weights[name] += weight
        present = [weights[name] > 0 for name in SIZES]
        parts = [(total[name] / weights[name]).astype(np.float32) for name in SIZES if weights[name]]
        updates = plan(self.settings, list(SIZES), self.state.counts, present, self.state.params.dtype)
        apply(self.state, np.concatenate(parts), updates, self.bounds, None, ReferenceKernel())
        self.digests.append(digest(self.state.params))
