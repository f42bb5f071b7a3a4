"""What is used of google-re2, which has no types of its own."""

class error(Exception):
    args: tuple[object, ...]

class Options:
    class Encoding:
        LATIN1: Options.Encoding

    encoding: Options.Encoding
    max_mem: int
    never_capture: bool
    dot_nl: bool
    log_errors: bool

class _Regexp:
    def fullmatch(self, text: bytes) -> object | None: ...
    def search(self, text: bytes) -> object | None: ...

def compile(pattern: bytes, options: Options) -> _Regexp: ...
