"""gcloud, kubectl or xpk (STAND_IN_NAME): refuses what the real one does not know, and notes what it was asked.

flags/NAME.json lists the commands and flags of the real tool, with its version. STAND_IN_ANSWERS is JSON,
{part of a command line: [[status, output, seconds], ...]}; each call takes the next answer, and the last one stays.
"""

import json
import os
import sys
import time
from pathlib import Path

NOT_KNOWN = 64


def main() -> int:
    name, arguments = os.environ["STAND_IN_NAME"], sys.argv[1:]
    known = json.loads((Path(__file__).resolve().parent / "flags" / f"{name}.json").read_text())["commands"]
    words = [name]
    for argument in arguments:
        if argument.startswith("-"):
            break
        words.append(argument)
    found = next((" ".join(words[:n]) for n in range(len(words), 0, -1) if " ".join(words[:n]) in known), None)
    if found is None:
        print(f"{name} has no command {' '.join(words)!r}", file=sys.stderr)
        return NOT_KNOWN
    for argument in arguments:
        if argument == "--":
            break
        if argument.startswith("-") and argument.split("=")[0] not in known[found].split():
            print(f"{found} has no flag {argument.split('=')[0]}", file=sys.stderr)
            return NOT_KNOWN
    return answer(" ".join([name, *arguments]))


def answer(line: str) -> int:
    log = Path(os.environ["STAND_IN_LOG"])
    before = [json.loads(one) for one in log.read_text().splitlines()] if log.exists() else []
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    for part, answers in json.loads(os.environ.get("STAND_IN_ANSWERS", "{}")).items():
        if part in line:
            status, output, *seconds = answers[min(sum(part in one for one in before), len(answers) - 1)]
            time.sleep(*seconds or [0])
            print(output)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
