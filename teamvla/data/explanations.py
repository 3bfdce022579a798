"""What to do about each code, and what the ranges of codes have in common.

A judgement of ``validate`` has reasons of its own
(:mod:`teamvla.data.validation.reasons`); the rules are explained by their range.
"""

from __future__ import annotations

from dataclasses import dataclass

from teamvla.data.codes import CODES


@dataclass(frozen=True)
class Explanation:
    """Why a finding matters to training, how it is made, and how to mend what it is about."""

    why: str
    how: str
    mend: str


@dataclass(frozen=True)
class Explained(Explanation):
    """An explanation together with its code and title."""

    code: str
    title: str

    def to_dict(self) -> dict[str, str]:
        """As JSON data."""
        names = ("code", "title", "why", "how", "mend")
        return {name: getattr(self, name) for name in names}


def explained(code: str, own: Explanation | None = None) -> Explained:
    """The explanation of a code: its own, or that of its range with its own mend."""
    if own is None:
        range_ = next(of for start, of in RANGES.items() if code.startswith(start))
        own = Explanation(range_.why, range_.how, MENDS.get(code, range_.mend))
    title = CODES.get(code) or ELSEWHERE[code]
    return Explained(own.why, own.how, own.mend, code, title)


RANGES = {
    "E1": Explanation(
        "A step or a file that breaks the schema cannot be stacked, normalised or fed to a policy.",
        "By the types, shapes and values of each field: when a step is added, when an episode is "
        "read, and over whole columns by validate.",
        "Give what docs/formats.md asks of the field.",
    ),
    "E2": Explanation(
        "The bytes are not what was written, or were never an episode: nothing in them can be "
        "believed, and nothing is executed to find out.",
        "By guards of the reader, before anything is inflated, allocated or converted.",
        "Take another copy of the file, or record it again.",
    ),
    "E3": Explanation(
        "The writer refuses what would leave a wrong or incomplete episode behind.",
        "While an episode is written, published or repaired.",
        "Follow the message: it names the call or the place on the disk.",
    ),
    "E4": Explanation(
        "The metadata or the contract says one thing and the steps another: whoever believes "
        "either is wrong about the other.",
        "By comparing every column with the metadata, the contract and the file's own place.",
        "Mend whichever of the two is wrong, or record the episode again.",
    ),
    "E5": Explanation(
        "All episodes of one index share their fields, shapes and meaning; this one does not, or "
        "cannot be used at all.",
        "By index, when it reads the episode.",
        "Record it again, remove it, or index it apart.",
    ),
    "E6": Explanation(
        "What a foreign format holds cannot be carried over as it stands, and is never dropped "
        "in silence.",
        "By convert, while it reads or writes the foreign files.",
        "Follow the message: it names the file and the field.",
    ),
    "C1": Explanation(
        "A checkpoint whose bytes or header changed gives other actions than the one that was "
        "measured.",
        "By the guards of the checkpoint's reader and the digest in its header.",
        "Take another copy, or another checkpoint of the run.",
    ),
}
"""The beginning of codes -> what they have in common."""

ELSEWHERE = {
    "E502": "cameras of different sizes",
    "E503": "`grip_q_*` or `reward` in some episodes and not in others",
    "E504": "a field that the other episodes have is missing",
    "E505": "a field has another dtype or shape than in the other episodes",
    "E506": "a field holds NaN, infinity, or a whole number that float32 has not",
    "E507": "most episodes do not fit the first",
    "C101": "not a safetensors file, or cut short in its header",
    "C102": "a header without the entries of a teamvla checkpoint",
    "C103": "another format version",
    "C104": "shorter or longer than its header says",
    "C105": "the digest does not match",
    "C106": "tensors that safetensors cannot read",
    "C107": "no digest in the header, or more than one",
}
"""Titles of the codes that other parts than the schema own."""

MENDS = {
    "E101": "Give `add_step` a dict of fields.",
    "E102": "Add it; a file may have `task` and `instruction` in its metadata instead.",
    "E103": "Use small letters, digits, `_`, `-`, at most 64; `meta` and `*-offsets` are taken.",
    "E104": "Give the type that the message names: an array, a Python number, text.",
    "E105": "Convert the array: `array.astype(np.float32)`.",
    "E106": "Give the shape that the message names; `q_*` and `action_*` are alike.",
    "E107": "Find where NaN or infinity comes from; `depth_*` alone may hold them.",
    "E108": "Grippers go from 0 (open) to 1 (closed): scale them. The contract tells the range of "
    "a signal.",
    "E109": "Give text, not empty, without NUL and lone surrogates.",
    "E110": "Use a Python number (`value.item()`) or a longer array.",
    "E111": "Use an array, a number, text or JSON (lists, not tuples).",
    "E112": "Join fields into arrays: 100 is the most; one of variable length counts twice.",
    "E113": "Write it with `EpisodeWriter`; your own rows go into `rows_*`.",
    "E114": "Rewrite it with `EpisodeWriter`.",
    "E115": "Rewrite it with `EpisodeWriter`; `*-offsets` is taken.",
    "E116": "Give int64, one more than there are steps.",
    "E117": "Copy it again, or record it again.",
    "E118": "Copy it again, or record it again.",
    "E119": "Copy it again, or record it again: rows are missing or left over.",
    "E121": "Give a dict of what JSON can hold; it has no NaN.",
    "E122": "Add the key: `task` for a writer, all that the writer fills in for a file "
    "of your own.",
    "E123": "Use small letters, digits, `_` and `-`, at most 64.",
    "E124": "Give the type that the message names.",
    "E125": "Move what is large into a field; 1 MiB is the most.",
    "E126": "Read the file with the teamvla that wrote it, or record it again.",
    "E127": "List fields of the file, once each, or copy it again.",
    "E128": "List fields of texts alone, one a step: nothing else is parsed.",
    "E201": "Copy the file again: its end is missing, or it is something else.",
    "E202": "It is not from teamvla, or is damaged: record it again. 128 members are the most.",
    "E203": "Copy it again; comments, several parts and large zip64 files are not read.",
    "E204": "Copy it again.",
    "E205": "Rewrite it with `EpisodeWriter`; `../` is never followed.",
    "E206": "Rewrite it with `EpisodeWriter`.",
    "E207": "Write it without a password.",
    "E208": "Write it with `numpy.savez_compressed` or `EpisodeWriter`.",
    "E209": "Split the episode, or pass a larger `max_bytes` to `read_episode`.",
    "E210": "Do not use it: no honest file says so.",
    "E211": "Do not use it: no honest file is laid out so.",
    "E212": "Copy it again, or record it again.",
    "E213": "Copy it again, or record it again.",
    "E214": "Copy it again, or record it again.",
    "E215": "Copy it again, or record it again.",
    "E216": "Copy it again, or record it again: at least one bit has changed.",
    "E217": "Look at the disk; the message says what the system said.",
    "E218": "Do not use it: two programs would read two things.",
    "E219": "Rewrite it with `EpisodeWriter`.",
    "E220": "Do not use it: something is hidden in it, or was put before it.",
    "E221": "Rewrite it with `EpisodeWriter`.",
    "E222": "Rewrite it with `EpisodeWriter`; headers are as `numpy.save` writes them.",
    "E223": "Version 1: `teamvla convert`. Else export plain arrays; no pickle is executed here.",
    "E224": "Convert it to bool, int, float, complex or fixed-width text.",
    "E225": "Copy it again, or record it again.",
    "E226": "Copy it again, or record it again.",
    "E227": "Copy it again, or record it again.",
    "E228": "Do not use it: no honest file says so.",
    "E229": "Rewrite it with `EpisodeWriter`.",
    "E230": "Copy it again, or record it again.",
    "E231": "Version 1: `teamvla convert`. Else it is no episode: write it with `EpisodeWriter`.",
    "E232": "Copy it again, or record it again.",
    "E233": "Rewrite it with `EpisodeWriter`.",
    "E234": "Flatten it: 32 levels are the most.",
    "E241": "Record it again; every field has `num_steps` rows.",
    "E242": "Ask for one of the fields that the message lists.",
    "E243": "Record it again, or take the field out of `json_fields`.",
    "E251": "Copy the file again.",
    "E252": "Split the episode: 16 million are the most.",
    "E253": "Pass a larger `max_bytes` to `read_version1`, or split the episode.",
    "E254": "Do not unpickle it. Write it anew where it came from.",
    "E255": "Do not unpickle it. Write it anew with dicts, arrays, numbers and text.",
    "E256": "Do not unpickle it. Write it anew where it came from.",
    "E257": "Do not unpickle it. Write it anew where it came from.",
    "E258": "Copy the file again.",
    "E259": "Write it anew with texts as keys.",
    "E260": "Copy the file again.",
    "E261": "Copy the file again.",
    "E262": "Copy the file again.",
    "E263": "Write it anew, flatter: 32 levels are the most.",
    "E264": "Do not use it; or split the episode: a million values are the most.",
    "E265": "Copy the file again.",
    "E266": "Convert it to bool, int, float, complex or fixed-width text.",
    "E267": "Copy the file again.",
    "E268": "Write it anew with dicts, arrays, numbers and text.",
    "E269": "Do not use it: something is hidden in it.",
    "E271": "`read_episode` reads version 2; other files need their own converter.",
    "E272": "It is a file of version 2 or another program's: see `read_episode`.",
    "E273": "Write it anew where it came from.",
    "E274": "Write it anew where it came from.",
    "E275": "Use the reader of that version.",
    "E276": "Remove it, or pass `--legacy-actions current`.",
    "E277": "Write it anew where it came from.",
    "E301": "Call `start_episode` first.",
    "E302": "Call `end_episode` or `abort` first.",
    "E303": "Add a step before `end_episode`; a file without steps is of no use.",
    "E304": "Give every step the fields of the first one.",
    "E305": "Give every step the kind, dtype and shape of the first one.",
    "E306": "Give the task and instruction that `start_episode` was given.",
    "E307": "Choose another id or folder, or remove the old one: nothing is replaced.",
    "E308": "Free some space and call it again, or later `teamvla repair`: the journal "
    "keeps the steps.",
    "E309": "Mend what the message says and call it again, or later `teamvla repair`.",
    "E310": "End it sooner, or record smaller pictures: 2 GiB are the most.",
    "E311": "Choose another id, or wait until it is done.",
    "E312": "Make an episode of it with `teamvla repair ROOT --apply`.",
    "E313": "Give the contract to `start_episode`: every step is checked against it.",
    "E314": "Give large values as arrays: 1 MiB of texts and JSON a step are the most.",
    "E401": "Move it to `TASK/EPISODE_ID.npz`.",
    "E402": "Record it again: it cannot have succeeded and not succeeded.",
    "E403": "Record it again, or mend the metadata.",
    "E404": "Record it again, or mend the metadata.",
    "E411": "Use `contract.to_dict()` and `contract.digest`.",
    "E412": "Give the contract the arms and joints that were recorded.",
    "E413": "Give the contract the cameras and sizes that were recorded.",
    "E414": "Clip commands before they are sent and stored, or mend the limits.",
    "E415": "Take the time from a clock that never goes back.",
    "E416": "Record at the contract's rate, or state the true one.",
    "E440": "Report it with the file: this is a fault of validate, or too little memory.",
    "E502": "Record all cameras of the contract in one size.",
    "E503": "Record it in all or none, or index them apart.",
    "E504": "Record it again, or remove it.",
    "E505": "Record it again, or index it apart.",
    "E506": "Find the step with `teamvla validate`, then record the episode again.",
    "E507": "Index the odd ones apart.",
    "E601": "Name the format with `--from`, or look whether the path is right.",
    "E602": "Choose another `--out`, or remove what is there.",
    "E603": "Write it with a contract, as your_robot.md shows.",
    "E604": "Correct the mapping; the message lists what there is.",
    "E605": "Look at the shapes in the message, and correct the mapping.",
    "E606": "Give a mapping with `--mapping`.",
    "E607": "Copy the data into one plain file.",
    "E608": "Convert it to numbers first.",
    "E609": "Split the episode.",
    "E610": "Get the file again.",
    "E611": "Do not trust it; put the files inside.",
    "E612": "Choose another `--to`.",
    "E613": "Wait for it, or choose another `--out`.",
    "E614": "Convert them into different data sets.",
    "E615": "Get the file again.",
    "C101": "Copy it again.",
    "C102": "Copy it again, unless it is another program's file.",
    "C103": "Read it with the teamvla that wrote it.",
    "C104": "Copy it again: the transfer broke off.",
    "C105": "Copy it again, or take another checkpoint: a bit has changed.",
    "C106": "Take another checkpoint of the run.",
    "C107": "Take another checkpoint of the run.",
}
"""What to do about each code; docs/codes.md says the same."""
