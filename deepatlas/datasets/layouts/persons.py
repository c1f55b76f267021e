"""Whose a scan is: told by names, or by who says so; never guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import UserError, brief
from .files import File


def persons_of(
    ids: Sequence[str], template: str | None, path: Path, twice: object = ()
) -> dict[str, str]:
    """Scan -> person, by the names of scans, see ``person_of``.

    ``twice``: what a dataset.json says of scans or persons that are one, () where there is none;
    ``path`` is for the error.
    """
    person = {id: person_of(id, template, path) for id in ids}
    in_json = twice != ()
    if person and (in_json or template is not None):
        _check_that_names_tell_persons_apart(person, template, path, in_json)
    if not in_json:
        return person
    first = united(person, twice, path)
    return {id: first[person[id]] for id in ids}


def person_of(id: str, template: str | None, path: Path) -> str:
    """The person of whom a scan is, by the scan's name without its ending.

    In ``template``, {subject} stands for the person, and * for anything, even nothing; from left to
    right, each for as few characters as will do: by "*_S_{subject}_*" the scan
    "ADNI_002_S_0295_MR_1" is of "0295". UserError if the name does not fit.

    Without a template a BIDS name, "sub-01_ses-02_T1w", is of "01"; any other scan is of a person
    of its own, who has its name.
    """
    if template is None:
        bids = re.match("sub-([A-Za-z0-9]+)(_|$)", id)
        return bids.group(1) if bids else id
    pattern = re.escape(template).replace(r"\{subject\}", "(.+?)").replace(r"\*", ".*?")
    found = re.fullmatch(pattern, id)
    if found is None:
        raise UserError(
            f"{path}: the name of the scan {id!r} does not fit subject = {template!r}, which "
            "(as --subject, or in the entry of the data set) says whose a scan is: mend the pattern"
        )
    return found.group(1)


def _check_that_names_tell_persons_apart(
    person: Mapping[str, str], template: str | None, path: Path, in_json: bool
) -> None:
    """Refuse a part of the names that most scans share, such as T1w: it is nobody."""
    name, count = Counter(person.values()).most_common(1)[0]
    if count <= 2 or 2 * count <= len(person):
        return
    if template is None:
        rule = "the names of BIDS"
        advice = 'say so in the entry of the data set, as in subject = "mouse_{subject}_*"'
    else:
        rule = f"subject = {template!r}"
        advice = "mend that"
    if in_json:
        otherwise = "list these scans in 'same_person_twice', without that rule"
    else:
        otherwise = "say whose each scan is in a table of the files, in a column subject"
    raise UserError(
        f"{path}: by {rule}, {count} of {len(person)} scans are of one person, {name!r}: if "
        f"another part of the name is the person, {advice}; if they are, {otherwise}"
    )


def united(person: Mapping[str, str], groups: object, path: Path) -> dict[str, str]:
    """Person -> the first of all that are the same one; groups that share a person unite.

    ``person``: of each scan, by its name. ``groups``: lists of scans or of persons.
    """
    first = {name: name for name in person.values()}

    def first_of(name: str) -> str:
        while first[name] != name:
            first[name] = first[first[name]]  # chains stay short
            name = first[name]
        return name

    for group in groups if isinstance(groups, list) else [groups]:
        members = [str(item) for item in group] if isinstance(group, list) else []
        if not members or any(item not in first and item not in person for item in members):
            raise UserError(
                f"{path}: 'same_person_twice' must list the scans of one person, by their names "
                f'or by what these say of the person, in lists such as ["003", "017"], got '
                f"{brief(group)}: persons are told by names only if subject says how, as in "
                '"mouse_{subject}_*"'
            )
        for item in members:
            if item in first and person.get(item, item) != item:
                raise UserError(
                    f"{path}: in 'same_person_twice', {item!r} is a scan of {person[item]!r} and "
                    "another person's name: rename one"
                )
        persons = [item if item in first else person[item] for item in members]
        for name in persons:
            first[first_of(name)] = first_of(persons[0])
    return {name: first_of(name) for name in first}


def check_that_persons_share_no_labels(files: Sequence[File], path: Path) -> None:
    """Refuse one file of labels for scans of two persons: these would be contrasts of one case."""
    owners: dict[str, File] = {}
    for file in files:
        if file.labels is None:
            continue
        other = owners.setdefault(str(file.labels), file)
        if other.subject != file.subject:
            raise UserError(
                f"{path}: {other.id} and {file.id} have the same labels, {file.labels.name}, and "
                "count as two persons: list one scan of each case, or say that they are of one "
                "person, in 'same_person_twice' of a dataset.json or as the subject"
            )
