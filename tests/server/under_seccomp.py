"""Runs a program as a container engine would under a seccomp profile: under_seccomp.py PROFILE PROGRAM ARGUMENT..."""

import json
import os
import sys

import seccomp


def action(name, errno):
    return seccomp.ERRNO(errno) if name == "SCMP_ACT_ERRNO" else getattr(seccomp, name.removeprefix("SCMP_ACT_"))


with open(sys.argv[1]) as file:
    profile = json.load(file)
rules = seccomp.SyscallFilter(action(profile["defaultAction"], 1))
for rule in profile["syscalls"]:
    arguments = [
        seccomp.Arg(arg["index"], getattr(seccomp, arg["op"].removeprefix("SCMP_CMP_")), arg["value"], arg["valueTwo"])
        for arg in rule.get("args", [])
    ]
    for name in rule["names"]:
        # Like container engines, skip system calls that have no number on this processor.
        if seccomp.resolve_syscall(seccomp.Arch(), name) >= 0:
            rules.add_rule(action(rule["action"], rule.get("errnoRet", 1)), name, *arguments)
rules.load()
os.execv(sys.argv[2], sys.argv[2:])
