"""All cells: role x moment x fault."""

from faults.cell import MOMENTS, Cell
from faults.strangers import CERTIFICATES, FIRST_WORDS, certificate_cell, disk_cell, words_cell
from protocols.base.shares import COMPUTING, Role

LINKS = ("evaluator-a–dealer", "evaluator-b–dealer", "evaluator-b–evaluator-a")
WAYS = (*(f"caller–{role}" for role in COMPUTING), *LINKS)
WRONG = ("garbage", "truncated", "oversize", "version", "replayed")
SENDERS = (
    "evaluator-a→evaluator-b",
    "evaluator-a→dealer",
    "evaluator-a→client",
    "client→evaluator-a",
)
QUICK_NAMES = {
    "SIGKILL dealer decode",
    "SIGKILL client prefill",
    "SIGKILL evaluator-a commit",
    "SIGSTOP evaluator-b decode",
    "reset caller–evaluator-a decode",
    "reset evaluator-b–evaluator-a prefill",
    "reset caller–dealer upload",
    "half-open caller–dealer decode",
    "corrupt evaluator-b–dealer decode",
    "garbage evaluator-a→evaluator-b decode",
    "replayed evaluator-a→evaluator-b prefill",
    "oversize client→evaluator-a decode",
    "disk full evaluator-b upload",
    "wrong role of dealer to a caller handshake",
}


def _cells() -> list[Cell]:
    found = []
    for fault in ("SIGKILL", "SIGSTOP"):
        for moment in MOMENTS:
            caller = Role.OWNER if moment == "upload" else Role.CLIENT
            found += [Cell(fault, str(role), moment) for role in (*COMPUTING, caller)]
    found.append(Cell("SIGKILL", str(Role.EVALUATOR_A), "commit"))
    found += [Cell("reset", way, moment) for way in WAYS for moment in MOMENTS]
    some = ("handshake", "upload", "decode")
    for fault in ("half-open", "corrupt"):
        found += [Cell(fault, way, moment) for way in WAYS for moment in some]
    found += [Cell("stall", way, "prefill") for way in WAYS]
    for sender in SENDERS:
        found += [Cell(what, sender, m) for what in WRONG for m in ("prefill", "decode")]
    found += [Cell(what, "owner→evaluator-a", "upload") for what in WRONG]
    found += [disk_cell(role) for role in COMPUTING]
    found += [words_cell(what, role) for what in FIRST_WORDS for role in COMPUTING]
    return found + [certificate_cell(kind, where) for kind, where in CERTIFICATES]


ALL: list[Cell] = [
    Cell(c.fault, c.where, c.moment, f"{c.fault} {c.where} {c.moment}" in QUICK_NAMES, c.run)
    for c in _cells()
]
QUICK = [cell for cell in ALL if cell.quick]
