"""A language model of 10 million parameters beside transformers on PyTorch: one thread, tokens per CPU second."""

import os

from harness import Contender, arguments, take_turns

WORKS = ("generate", "forward", "backward", "step")
parser = arguments(__doc__)
parser.add_argument("--peer-python", help="an interpreter with torch and transformers")
parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
parser.add_argument("--only", choices=WORKS)
options = parser.parse_args()

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin count as work
contenders = []
for work in WORKS if options.only is None else (options.only,):
    for batch_size in options.batch_sizes:
        settings = {"model": "tiny10m", "work": work, "batch_size": batch_size}
        settings |= {"length": 128, "new": 128} if work == "generate" else {"length": 256}
        if options.peer_python:
            name = f"transformers {work}, batch {batch_size}"
            contenders.append(Contender(name, "transformers_llm.py", settings, options.peer_python))
        contenders.append(Contender(f"jaxrl {work}, batch {batch_size}", "jaxrl_llm.py", settings))
if not options.peer_python:
    print("transformers is left out: --peer-python names no interpreter that has it")
take_turns(contenders, options.rounds, options.out, unit="tokens", one_core=True)
