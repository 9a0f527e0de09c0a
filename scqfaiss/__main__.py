"""python -m scqfaiss"""

from .cli import main

main()
