"""`scqfaiss compare` as a script: label-aware codes beside FAISS's own, IVFPQ first of all, at equal bits a vector.

    python benchmarks/ivfpq.py --train T.h5 --query Q.h5 --database D.h5 --out results/NAME [--bits 8,16,32,64] ...

Takes the options of `scqfaiss compare`.
"""

import sys

from scqfaiss.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "compare")
    main()
