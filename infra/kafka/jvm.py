"""The command line of Kafka's JVM: small, quiet, quick to start. What each flag buys was measured; the reasons stand beside them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from infra.kafka.java import Java

MAIN = "kafka.Kafka"
FORMAT = "kafka.tools.StorageTool"
LOGGING = Path(__file__).with_name("log4j2.properties")

FLAGS = (
    "-XX:+UseSerialGC",  # the smallest of the collectors, and enough for a heap of this size
    "-XX:TieredStopAtLevel=1",  # no C2: a third less CPU at start and less memory; a broker's inner loops are intrinsics anyway
    "-XX:ReservedCodeCacheSize=48m",
    "-XX:MaxDirectMemorySize=96m",
    "-Djdk.nio.maxCachedBufferSize=262144",  # else each thread keeps a buffer as large as the largest message that it ever met
    "-Xss512k",
    "-XX:-UsePerfData",  # no files in the temporary folder
    "-XX:+ExitOnOutOfMemoryError",  # a dead broker is started again, a half-dead one is not noticed
    "-Xlog:disable",  # nothing on standard output; Kafka has a log of its own
    "-Djava.awt.headless=true",
)
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}  # glibc's arenas are what a JVM's resident memory grows by, thread by thread


class Jvm(msgspec.Struct, frozen=True, kw_only=True):
    """A Java with Kafka's class path, and an archive of loaded classes if one was made.

    `archive` cuts the start to less than half: CDS (JEP 350) before Java 25, the AOT cache (JEP 483, 514) from then on.
    """

    java: Java
    jars: tuple[Path, ...]
    archive: Path | None = None

    def arguments(self, *, heap_mb: int, log_path: Path, loglevel: str = "warn", record: Path | None = None) -> list[str]:
        """Java's options; with `record` it writes an archive of its loaded classes there when it ends."""
        options = [*FLAGS, f"-Xms{min(heap_mb, 48)}m", f"-Xmx{heap_mb}m", f"-XX:ErrorFile={log_path.with_name('jvm-crash.log')}"]
        if self.java.major >= 22:
            options.append("--enable-native-access=ALL-UNNAMED")
        if self.java.major >= 23:
            options.append("--sun-misc-unsafe-memory-access=allow")
        aot = self.java.major >= 25
        if record is not None:
            options.append(f"-XX:{'AOTCacheOutput' if aot else 'ArchiveClassesAtExit'}={record}")
        elif self.archive is not None:
            options.append(f"-XX:{'AOTCache' if aot else 'SharedArchiveFile'}={self.archive}")
        logging = [f"-Dlog4j2.configurationFile={LOGGING}", f"-Dheadwater.log={log_path}", f"-Dheadwater.loglevel={loglevel}"]
        return [*options, *logging, "-cp", os.pathsep.join(map(str, self.jars))]

    def command(self, arguments_file: Path, main: str, *arguments: str) -> list[str]:
        """The argument vector; Java's options are in a file, so that `ps` stays readable."""
        return [str(self.java.program), f"@{arguments_file}", main, *arguments]


def write_arguments(path: Path, options: list[str]) -> Path:
    """Write a Java argument file, each option in quotes."""
    quoted = ('"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"' for option in options)
    path.write_text("\n".join(quoted) + "\n", encoding="utf-8")
    return path
