# SPDX-License-Identifier: Apache-2.0
"""Reads the JSON of blockpack_bench: shared by `compare` and `plot`."""
import json
import re
import statistics
import sys


class Row:
    """One row: its repetitions, and the parts of its name."""

    def __init__(self, name):
        self.name = name
        self.times = []  # seconds of one call, one per repetition
        self.counters = {}
        self.label = ""  # of a product: its arithmetic, and which of several ways a peer took
        self.error = None
        head = re.split(r"/(?:M|N|prompt|generate):", name, maxsplit=1)[0]
        parts = head.split("/")
        self.operation = parts[0]
        self.scheme = "/".join(parts[1:-1])
        self.implementation = parts[-1]
        self.fields = dict(f.split(":", 1) for f in name.split("/") if ":" in f and f[0].isalpha())

    @property
    def time(self):
        return statistics.median(self.times)

    @property
    def spread(self):
        """Distance between the quartiles, relative to the median."""
        if len(self.times) < 4:
            return 0.0
        q = statistics.quantiles(self.times, n=4)
        return (q[2] - q[0]) / self.time

    def counter(self, name):
        values = self.counters.get(name)
        return statistics.median(values) if values else None

    @property
    def shape(self):
        return f"{self.fields.get('N')}x{self.fields.get('K')}"

    @property
    def m(self):
        return int(self.fields.get("M", 0))

    @property
    def threads(self):
        return int(self.fields.get("threads", 1))

    @property
    def tier(self):
        return self.fields.get("tier", "")


COUNTERS = ("GBps", "GOPS", "limit_fraction", "bits_per_weight", "rel_error", "streams", "tokens_per_s",
            "outside", "peak_matrices")
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def load(paths):
    """Rows by name, in the order of the files, and the context of the last file with the commits of all. A row that is in
    several files comes from the last one: what is compared must have run together."""
    rows, context, commits = {}, {}, []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as f:
                data = json.load(f)
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: {error}")
        context = data["context"]
        if context.get("commit", "?") not in commits:
            commits.append(context.get("commit", "?"))
        fresh = {}
        for run in data["benchmarks"]:
            if run["run_type"] != "iteration":
                continue
            name = re.sub(r"/(manual_time|repeats:\d+|iterations:\d+|min_time:[\d.]+)", "", run["run_name"])
            row = fresh.setdefault(name, Row(name))
            if run.get("error_occurred"):
                row.error = run.get("error_message", "failed")
                continue
            row.label = run.get("label", "")
            row.times.append(run["real_time"] * UNITS[run["time_unit"]])
            for counter in COUNTERS:
                if counter in run:
                    row.counters.setdefault(counter, []).append(run[counter])
        for name, row in fresh.items():
            rows[name] = row
    context["commit"] = ", ".join(commits)
    return rows, context
