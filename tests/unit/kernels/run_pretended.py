"""Print a digest of products as computed with the instruction set that is named, for each type that is named.

Only the kernels of these types are compiled; the others would take a minute.
"""

import json
import sys
from pathlib import Path


def main(isa: str, names: list[str]) -> None:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    if isa != "own":
        from pretended import pretend

        pretend(isa)
    from quant_digest import digest

    from outrider.kernels.cpu.isa import chosen

    assert isa in ("own", chosen()), chosen()
    print(json.dumps({name: digest(name, chosen()) for name in names}))


main(sys.argv[1], sys.argv[2:])
