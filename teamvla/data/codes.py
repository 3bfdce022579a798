"""The codes of everything that can be wrong with a step or an episode.

A code names one rule and never changes its meaning. ``E1xx``: steps, columns and
metadata; ``E2xx``: the bytes of a file; ``E3xx``: the order of calls and the disk while
writing; ``E4xx``: content that contradicts itself, found by ``validate``.
"""

from __future__ import annotations

CODES = {
    # The step, and the same rules over a whole column.
    "E101": "a step is not a mapping",
    "E102": "a required field is missing",
    "E103": "a field has a name that cannot be stored",
    "E104": "a field has the wrong type",
    "E105": "an array has the wrong dtype",
    "E106": "an array has the wrong shape",
    "E107": "a number is not finite",
    "E108": "a number is out of its range",
    "E109": "a text holds what cannot be stored, or nothing",
    "E110": "a NumPy scalar stands in an unknown field",
    "E111": "a value is neither array, number, text nor JSON",
    "E112": "a step has too many fields",
    # Metadata.
    "E121": "metadata is not a mapping, or holds what JSON cannot",
    "E122": "metadata lacks a key",
    "E123": "a task or an episode id is not a legal name",
    "E124": "a metadata value has the wrong type",
    "E125": "metadata is larger than a file may carry",
    "E126": "the file format has another version",
    # The zip container.
    "E201": "not a zip file, or cut short at its end",
    "E202": "too many members",
    "E203": "the directory is not where the file says",
    "E204": "a directory entry is malformed",
    "E205": "a member has an illegal name",
    "E206": "a member appears twice",
    "E207": "a member is encrypted",
    "E208": "a member uses another compression than deflate",
    "E209": "the content is larger than the limit",
    "E210": "a member claims an impossible compression ratio",
    "E211": "a member lies outside the file or inside another",
    "E212": "a member's own header disagrees with the directory",
    "E213": "compressed data is damaged",
    "E214": "a member is shorter than the directory says",
    "E215": "a member is longer than the directory says",
    "E216": "a checksum does not match",
    "E217": "the file cannot be read to its end",
    # Arrays and metadata inside the file.
    "E221": "a member is not a .npy array",
    "E222": "an array's header is malformed",
    "E223": "an array holds pickled objects",
    "E224": "an array has a dtype that episodes do not use",
    "E225": "an array's header disagrees with its size",
    "E226": "an array holds values its dtype does not have",
    "E231": "metadata is missing or is not a byte vector",
    "E232": "metadata is not UTF-8 JSON",
    "E233": "metadata is not a JSON object",
    "E234": "metadata is nested too deep",
    "E241": "a column is not as long as the episode",
    "E242": "a field is not in the file",
    "E243": "a JSON field does not hold JSON",
    # Writing.
    "E301": "no episode was started",
    "E302": "an episode is already being written",
    "E303": "an episode without steps",
    "E304": "the fields of the steps differ",
    "E305": "a field changes its kind, dtype or shape",
    "E306": "a step contradicts its episode's metadata",
    "E307": "the episode exists already",
    "E308": "the disk is full",
    "E309": "the file cannot be written",
    "E310": "the episode is too large for one file",
    # Content against metadata and contract.
    "E401": "the folder is not the task, or the file name not the episode id",
    "E402": "the success flag contradicts the last step",
    "E403": "the instruction contradicts the steps",
    "E404": "the task contradicts the steps",
    "E411": "the contract is malformed or its digest is wrong",
    "E412": "an arm's columns do not fit the contract",
    "E413": "a camera's pictures do not fit the contract",
    "E414": "an action is outside the joint limits",
    "E415": "time does not increase",
    "E416": "the rate is not the contract's",
}
