"""Procedural task families: endless, seeded, with exact checkers."""

from winnow.data.families.arithmetic import Chains, Facts, WordProblems
from winnow.data.families.draft import Draft, Family, Spoilable, final_answer, score
from winnow.data.families.everyday import Dates, Logic, Units
from winnow.data.families.sequences import Lists, Sorting, Strings

FAMILIES = (Chains, Dates, Facts, Lists, Logic, Sorting, Strings, Units, WordProblems)

__all__ = [
    "FAMILIES",
    "Chains",
    "Dates",
    "Draft",
    "Facts",
    "Family",
    "Lists",
    "Logic",
    "Sorting",
    "Spoilable",
    "Strings",
    "Units",
    "WordProblems",
    "final_answer",
    "score",
]
