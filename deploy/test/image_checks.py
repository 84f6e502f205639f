"""The Dockerfile and what it sends to the builder. Read, not built: there is no container engine here."""
import re

from shared import DEPLOY, ROOT, program, run

# Which Debian 12 package brings a shared library that a binary may ask for. Not in the table: not allowed.
PACKAGE_OF = {
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "libz.so.1": "zlib1g",
    # Part of every debian:bookworm-slim.
    "libc.so.6": None,
    "libm.so.6": None,
    "libgcc_s.so.1": None,
    "ld-linux-x86-64.so.2": None,
    "ld-linux-aarch64.so.1": None,
}


def instructions() -> list[tuple[str, str]]:
    """Instructions in order, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    steps = instructions()
    start = max(number for number, (word, _) in enumerate(steps) if word == "FROM")
    return steps[start:]


def packages() -> set[str]:
    text = next(rest for word, rest in last_stage() if word == "RUN" and "apt-get install" in rest)
    return set(re.search(r"install -y --no-install-recommends ([^&]*)", text).group(1).split())


def check_the_image_has_a_build_stage_and_a_stage_to_run():
    stages = [rest for word, rest in instructions() if word == "FROM"]
    assert len(stages) == 2, stages
    assert stages[0].endswith(" AS build") and not stages[1].startswith("rust:"), stages


def check_the_image_is_built_with_the_toolchain_of_the_checkout():
    channel = re.search(r'channel = "(\d+\.\d+)', (ROOT / "rust-toolchain.toml").read_text(encoding="utf-8")).group(1)
    assert instructions()[0] == ("FROM", f"rust:{channel}-bookworm AS build"), instructions()[0]


def check_the_build_is_locked_and_builds_both_programs():
    build = next(rest for word, rest in instructions() if word == "RUN" and "cargo build" in rest)
    for word in ("--locked", "--release", "-p archiver", "-p replayer"):
        assert word in build, f"{word} is not in: {build}"


def check_both_programs_are_copied_and_tried():
    copied = next(rest for word, rest in last_stage() if word == "COPY")
    assert copied == "--from=build /out/archiver /out/replayer /usr/local/bin/", copied
    tried = [rest for word, rest in last_stage() if word == "RUN"]
    for name in ("archiver", "replayer"):
        assert f'["/usr/local/bin/{name}", "--version"]' in tried, tried


def check_the_image_ends_as_a_user_that_is_not_root():
    users = [rest for word, rest in last_stage() if word == "USER"]
    assert users == ["65532:65532"], users
    after = last_stage()[last_stage().index(("USER", "65532:65532")) :]
    assert not any("apt-get" in rest for _, rest in after)


def check_the_image_carries_its_labels():
    labels = " ".join(rest for word, rest in last_stage() if word == "LABEL")
    for name in ("title", "description", "licenses", "source", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels, name


def check_the_builder_gets_every_crate_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", rules
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    members = re.search(r"members = \[(.*?)\]", manifest, re.S).group(1)
    needed = {member.split("/")[0] for member in re.findall(r'"([^"]+)"', members)} | {"Cargo.toml", "Cargo.lock"}
    assert allowed == needed, f"allowed {sorted(allowed)}, needed {sorted(needed)}"


def check_every_shared_library_of_the_programs_is_in_the_image():
    for name in ("archiver", "replayer"):
        wanted = re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", run("readelf", "-d", program(name)).stdout)
        assert wanted, f"{name}: readelf tells nothing"
        for library in wanted:
            assert library in PACKAGE_OF, f"{name} needs {library}, of which the image knows nothing"
            package = PACKAGE_OF[library]
            assert package is None or package in packages(), f"{name} needs {library} of {package}, which is not installed"


def check_certificates_are_in_the_image():
    assert "ca-certificates" in packages(), packages()
