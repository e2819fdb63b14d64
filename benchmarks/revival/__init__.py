"""Whether an erased concept comes back to somebody who looks for it: attacks against defences.

`dev.py bench revival` measures every attack (attacks.py) on every defence (defences.py), for two
objects, a style, the explicit attribute and a picture that the model never learned (subjects.py).
To add a row, write a function under `@defence` in defences.py; to add a column, one under `@attack`
in attacks.py.
"""
