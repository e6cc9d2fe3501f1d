"""From `checkpoints/` to the one file that is put beside a release, for packages installed without a checkout.

python dev/archive_heads.py checkpoints dist/outrider-heads.zip        make heads-archive
outrider fetch heads --from outrider-heads.zip                             where the package is installed
"""

import hashlib
import sys
from pathlib import Path

from outrider.formats.heads_archive import write_archive


def main(checkpoints: Path, archive: Path) -> None:
    manifest = write_archive(checkpoints, archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    print(f"{archive}: {len(manifest['files'])} files, {archive.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
