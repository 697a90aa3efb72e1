"""What is found wrong with a dataset, and how tests break one."""

import json
from dataclasses import replace

import numpy as np

from data.build import read_data
from data.findings import Findings
from data.table import RecordTable


def found(cfg):
    """(kind, where) of all findings, and the data."""
    findings = Findings()
    data = read_data(cfg, 0, findings)
    return [(finding.kind, finding.where) for finding in findings], data


def crowds_alone(split):
    """The split with all of its objects as groups."""
    objects = split.objects
    objects = replace(objects, iscrowd=np.ones(len(objects), bool))
    return replace(split, records=RecordTable.of(list(split.records), objects))


def edit_json(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def edit_line(file, number, edit):
    """Change one line of a metadata.jsonl."""
    lines = file.read_text().splitlines()
    row = json.loads(lines[number])
    lines[number] = edit(row) or json.dumps(row)
    file.write_text("\n".join(lines))
