"""The stamp that a file carries: written into a text file's own comment syntax, found there again, taken off again.

Pure: bytes and a file's name in, bytes and findings out. What a stamp means, whether the ledger knows it and whether its digest
is right, is the node's `domain`. The laws, for every x, name and fields, with stamp(x) = write(strip(x)):

    strip(stamp(x)) == strip(x)      strip(strip(x)) == strip(x)      strip(x) == x where nothing stands in the stamp's place

`lead` knows what must stay before a stamp, `syntax` each kind of file, `place` where a block goes, `block` its grammar,
`earlier` the earlier bridge's two forms, `foreign` another tool's; `reading` puts them together.
"""

from services.stamping.embedding.reading import (
    DigestRule,
    Foreign,
    Form,
    Quoted,
    Reading,
    Stamp,
    digest,
    read,
    strip,
    write,
)

__all__ = ["DigestRule", "Foreign", "Form", "Quoted", "Reading", "Stamp", "digest", "read", "strip", "write"]
