"""deploy/compose.yaml: read and asserted. Starting it needs a container engine, which is not here."""
from shared import DEPLOY, load, program, run

COMPOSE = DEPLOY / "compose"
STARTED_BY_UP = {"kafka", "topics", "s3", "bucket", "archiver", "producer"}
STATES = {"service_healthy", "service_completed_successfully", "service_started"}


def services() -> dict:
    return load(DEPLOY / "compose.yaml")["services"]


def archiver_config() -> dict:
    return load(COMPOSE / "archiver.yaml")


def check_compose_has_the_services_of_a_whole_system():
    started = {name for name, service in services().items() if "profiles" not in service}
    assert started == STARTED_BY_UP, started


def check_compose_images_are_pinned():
    for name, service in services().items():
        image, _, tag = service["image"].rpartition(":")
        assert image and tag and tag != "latest", f"{name}: {service['image']}"


def check_compose_waits_for_what_can_be_waited_for():
    all_services = services()
    for name, service in all_services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in STATES, f"{name} waits for {how}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in all_services[other], f"{name} waits for the health of {other}, which tells none"
            if how["condition"] == "service_completed_successfully":
                assert all_services[other]["restart"] == "no", f"{name} waits for the end of {other}, which starts again"
    for name in ("kafka", "s3", "archiver"):
        assert all_services[name]["healthcheck"]["test"][0] == "CMD", name


def check_compose_containers_of_ours_are_not_root_and_cannot_write():
    for name in ("archiver", "tool"):
        service = services()[name]
        assert service["user"] == "65532:65532" and service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name


def check_compose_ports_are_bound_to_loopback():
    for name, service in services().items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"


def check_compose_mounts_are_there():
    volumes = load(DEPLOY / "compose.yaml")["volumes"]
    for name, service in services().items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in volumes
            assert there, f"{name}: {source} is not there"


def check_compose_builds_from_the_checkout():
    build = services()["archiver"]["build"]
    assert (DEPLOY / build["context"]).resolve() == DEPLOY.parent
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()


def check_compose_archiver_config_names_the_other_services():
    config, all_services = archiver_config(), services()
    source = config["sources"][0]["kafka"]
    assert source["brokers"] == ["kafka:9092"]
    assert "INSIDE://kafka:9092" in all_services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    bucket = config["archive"]["url"].removeprefix("s3://").split("/")[0]
    assert bucket == all_services["bucket"]["environment"]["BUCKET"]
    assert config["archive"]["endpoint"] == all_services["bucket"]["environment"]["S3_ENDPOINT"] == "http://s3:7070"
    made = (COMPOSE / "topics.sh").read_text(encoding="utf-8")
    assert f"for topic in {' '.join(source['topics'])};" in made, "topics.sh makes other topics"
    tool = all_services["tool"]["environment"]
    assert tool["TAPEDECK__ARCHIVE__URL"] == config["archive"]["url"]


def check_compose_keys_are_the_same_everywhere():
    root = services()["s3"]["environment"]
    for name in ("bucket", "archiver", "tool"):
        keys = services()[name]["environment"]
        assert keys["AWS_ACCESS_KEY_ID"] == root["ROOT_ACCESS_KEY"], name
        assert keys["AWS_SECRET_ACCESS_KEY"] == root["ROOT_SECRET_KEY"], name


def check_compose_gives_the_archiver_time_to_drain():
    grace = archiver_config()["shutdown"]["grace"]
    stop = services()["archiver"]["stop_grace_period"]
    assert int(stop.removesuffix("s")) >= int(grace.removesuffix("s")) + 15, f"{stop} for {grace}"


def check_compose_scripts_are_valid_shell():
    for script in sorted(COMPOSE.glob("*.sh")):
        shell = script.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
        done = run(shell, "-n", script)
        assert done.returncode == 0, f"{script.name}: {done.stderr}"


def check_the_archiver_accepts_the_compose_configuration():
    done = run(program("archiver"), "check", "-c", COMPOSE / "archiver.yaml")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}"
