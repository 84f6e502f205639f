"""The chart: rendered offline by the Helm SDK, held against every Kubernetes version that it claims and against the
"restricted" Pod Security profile, compared with golden renders, and given values that it must refuse."""
import copy
import json
import tempfile

import helm_python
import kubernetes_validate.utils
import yaml

from shared import DEPLOY, ROOT, TEST, load, program, run

CHART = DEPLOY / "helm" / "tapedeck"
GOLDEN = TEST / "golden"
CASES = ("archiver", "everything", "replay")
OLDEST = (1, 30)


def values(case: str) -> dict:
    return load(TEST / "values" / f"{case}.yaml")


def changed(case: str, path: str, value) -> dict:
    """The values of a case with one of them changed: `a.b.c`."""
    result = copy.deepcopy(values(case))
    *parents, last = path.split(".")
    place = result
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return result


def render(given: dict) -> dict[str, str]:
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(given)
        rendered = chart.render(given, name="demo", namespace="prod")
    return {path.removeprefix("tapedeck/templates/"): text for path, text in sorted(rendered.items()) if text.strip()}


def objects(given: dict) -> list[dict]:
    texts = (text for path, text in render(given).items() if not path.endswith("NOTES.txt"))
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def one(kind: str, given: dict) -> dict:
    found = [document for document in objects(given) if document["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def pod_of(document: dict) -> dict:
    return document["spec"]["template"]["spec"]


def workloads(case: str) -> list[dict]:
    return [document for document in objects(values(case)) if "template" in document.get("spec", {})]


def golden_text(case: str) -> str:
    return "".join(f"# {path}\n{text.strip()}\n---\n" for path, text in render(values(case)).items())


def bless() -> None:
    for case in CASES:
        (GOLDEN / f"{case}.yaml").write_text(golden_text(case), encoding="utf-8")


def refused(given: dict, *words: str) -> None:
    """These values must not render, and the error must hold all of these words."""
    try:
        render(given)
    except helm_python.HelmError as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"the error does not say {missing}: {error}"
    else:
        raise AssertionError(f"rendered, but should have been refused for {words}")


def check_the_chart_renders_as_the_golden_files_say():
    for case in CASES:
        expected = (GOLDEN / f"{case}.yaml").read_text(encoding="utf-8")
        assert golden_text(case) == expected, f"{case} differs; if that is meant: deploy/test/run.sh --bless, and look at the diff"


def check_helm_lints_the_chart_without_a_warning():
    for case in CASES:
        result = helm_python.lint(CHART, values(case), strict=True, kube_version="1.30.0")
        bad = [message for message in result.get("messages", []) if "icon" not in str(message)]
        assert not bad, f"{case}: {bad}"


def check_every_object_is_valid_in_kubernetes_1_30_and_all_later_versions():
    versions = {tuple(int(part) for part in version.split(".")[:2]) for version in kubernetes_validate.utils.all_versions()}
    wanted = sorted(version for version in versions if version >= OLDEST)
    assert wanted[0] == OLDEST and len(wanted) >= 5, wanted
    for case in CASES:
        for document in objects(values(case)):
            for major, minor in wanted:
                kubernetes_validate.validate(document, f"{major}.{minor}", strict=True)


def check_the_chart_says_which_kubernetes_it_needs():
    assert load(CHART / "Chart.yaml")["kubeVersion"] == ">=1.30.0-0"


def check_chart_and_workspace_have_one_version():
    manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    assert f'version = "{load(CHART / "Chart.yaml")["appVersion"]}"' in manifest.split("[workspace.package]")[1].split("[")[0]


def check_every_pod_keeps_the_restricted_profile_and_a_read_only_root():
    for case in CASES:
        for workload in workloads(case):
            pod = pod_of(workload)
            who = f"{case} {workload['kind']}"
            assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), who
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True and security["runAsUser"] == 65532, who
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, who
            allowed = {"configMap", "secret", "emptyDir", "projected", "downwardAPI", "persistentVolumeClaim", "csi", "ephemeral"}
            assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"]), who
            for container in pod["containers"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False and not context.get("privileged"), who
                assert context["capabilities"] == {"drop": ["ALL"]}, who
                assert context["readOnlyRootFilesystem"] is True, who
                assert not any(port.get("hostPort") for port in container.get("ports", [])), who


def check_no_pod_gets_a_token_of_the_cluster():
    for case in CASES:
        assert all(pod_of(workload)["automountServiceAccountToken"] is False for workload in workloads(case))
        assert one("ServiceAccount", values(case))["automountServiceAccountToken"] is False


def check_memory_request_equals_limit_and_cpu_has_no_limit():
    for case in CASES:
        for workload in workloads(case):
            resources = pod_of(workload)["containers"][0]["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], case
            assert "cpu" in resources["requests"] and "cpu" not in resources["limits"], case


def check_the_grace_period_follows_the_configured_shutdown():
    for grace, seconds in (("25s", 40), ("1m", 75), ("1m30s", 105), ("1500ms", 17), ("0s", 15), ("0", 15), ("1h", 3615), ("1.5m", 105), ("1m 30s", 105), ("2min", 135)):
        deployment = one("Deployment", changed("archiver", "config.shutdown.grace", grace))
        assert pod_of(deployment)["terminationGracePeriodSeconds"] == seconds, grace
    without = changed("archiver", "config.shutdown", None)
    assert pod_of(one("Deployment", without))["terminationGracePeriodSeconds"] == 40
    larger = changed("archiver", "terminationGracePeriodSeconds", 300)
    assert pod_of(one("Deployment", larger))["terminationGracePeriodSeconds"] == 300


def check_a_grace_period_that_is_too_small_is_refused():
    refused(changed("archiver", "terminationGracePeriodSeconds", 39), "terminationGracePeriodSeconds", "at least 40")
    exactly = changed("archiver", "terminationGracePeriodSeconds", 40)
    assert pod_of(one("Deployment", exactly))["terminationGracePeriodSeconds"] == 40


def check_a_shutdown_grace_that_is_no_time_is_refused():
    for grace in ("25", "soon", "-5s", "25 parsecs"):
        refused(changed("archiver", "config.shutdown.grace", grace), "config.shutdown.grace", grace)


def check_unknown_and_mistyped_values_are_refused_by_name():
    refused(changed("archiver", "replicas", 2), "replicas")
    refused(changed("archiver", "image.tags", "x"), "tags")
    refused(changed("archiver", "replay.jobs", "x"), "jobs")
    refused(changed("archiver", "replicaCount", "two"), "replicaCount")
    refused(changed("archiver", "replay.job", "Upper_Case"), "job")
    refused(changed("archiver", "image.digest", "sha256:short"), "digest")


def check_every_default_value_is_typed_and_the_schema_is_closed():
    def closed(schema: dict, defaults: dict, path: str) -> None:
        if schema.get("additionalProperties") is not False:
            return
        unknown = set(defaults) - set(schema["properties"])
        assert not unknown, f"{path}: {unknown} have no type"
        for key, value in defaults.items():
            if isinstance(value, dict):
                closed(schema["properties"][key], value, f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert schema["additionalProperties"] is False
    closed(schema, load(CHART / "values.yaml"), "values")


def check_what_is_required_is_asked_for_by_name():
    refused(changed("archiver", "image.repository", ""), "image.repository")
    refused(changed("archiver", "config.archive", {}), "config.archive.url")
    refused(changed("archiver", "config.sources", []), "config.sources")
    refused(changed("replay", "replay.job", ""), "replay.job")
    refused(changed("replay", "replay.config.archive", {}), "archive.url")


def check_an_admin_listener_that_probes_cannot_reach_is_refused():
    for listen in ("127.0.0.1:9464", "localhost:9464", "[::1]:9464"):
        refused(changed("archiver", "config.admin.listen", listen), "config.admin.listen", "loopback")
    refused(changed("archiver", "config.admin.listen", "0.0.0.0"), "config.admin.listen")


def check_probes_ask_the_admin_port():
    container = pod_of(one("Deployment", values("everything")))["containers"][0]
    assert container["ports"] == [{"name": "admin", "containerPort": 9500}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}


def check_an_update_never_starts_an_extra_member_of_the_group():
    assert one("Deployment", values("archiver"))["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def check_the_configuration_is_rendered_as_it_is():
    given = values("everything")
    rendered = yaml.safe_load(one("ConfigMap", given)["data"]["archiver.yaml"])
    assert rendered == given["config"], rendered


def check_a_changed_configuration_rolls_the_pods():
    def checksum(given: dict) -> str:
        return one("Deployment", given)["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(values("archiver")) == checksum(changed("archiver", "replicaCount", 5))
    assert checksum(values("archiver")) != checksum(changed("archiver", "config.seal", {"max_age": "1m"}))


def check_selectors_stay_the_same_over_versions_and_match_their_pods():
    deployment = one("Deployment", values("everything"))
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not any("version" in key or "chart" in key for key in selector)


def check_a_secret_is_mounted_as_files_and_never_rendered():
    text = golden_text("everything")
    assert "secretName: tapedeck-secrets" in text and "mountPath: /etc/tapedeck/secrets" in text
    assert "kind: Secret" not in text


def check_the_replay_job_retries_only_what_can_mend():
    job = one("Job", values("replay"))["spec"]
    assert pod_of({"spec": job})["restartPolicy"] == "Never"
    stop, ignore = job["podFailurePolicy"]["rules"]
    assert stop["action"] == "FailJob" and set(stop["onExitCodes"]["values"]) == {64, 65, 78}
    assert stop["onExitCodes"]["containerName"] == pod_of({"spec": job})["containers"][0]["name"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert job["podReplacementPolicy"] == "Failed"
    assert job["backoffLimit"] == 6 and job["ttlSecondsAfterFinished"] >= 86_400


def check_the_replay_runs_with_its_name_its_flags_and_its_configuration():
    given = values("replay")
    args = pod_of(one("Job", given))["containers"][0]["args"]
    assert args[:6] == ["run", "-c", "/etc/tapedeck/config/replayer.yaml", "--job", "rp-orders-1101", "--yes"], args
    assert args[6:] == given["replay"]["args"]
    assert yaml.safe_load(one("ConfigMap", given)["data"]["replayer.yaml"]) == given["replay"]["config"]


def check_a_replay_beside_an_archiver_reads_its_archive():
    given = values("archiver") | {"replay": {"enabled": True, "job": "rp-1", "config": {"target": {"kafka": {"brokers": ["k:9092"]}}}}}
    configs = {name: text for document in objects(given) if document["kind"] == "ConfigMap" for name, text in document["data"].items()}
    assert yaml.safe_load(configs["replayer.yaml"])["archive"] == given["config"]["archive"]
    assert set(configs) == {"archiver.yaml", "replayer.yaml"}


def check_a_replay_only_release_has_no_archiver():
    assert sorted(document["kind"] for document in objects(values("replay"))) == ["ConfigMap", "Job", "ServiceAccount"]


def check_names_fit_into_what_kubernetes_allows():
    given = changed("replay", "fullnameOverride", "a" * 60)
    given["replay"]["job"] = "j" * 33
    for document in objects(given):
        assert len(document["metadata"]["name"]) <= 63, document["metadata"]["name"]


def check_the_archiver_accepts_the_rendered_configuration():
    for case in ("archiver", "everything"):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(one("ConfigMap", values(case))["data"]["archiver.yaml"])
            file.flush()
            done = run(program("archiver"), "check", "-c", file.name)
            assert done.returncode == 0, f"{case}: exit {done.returncode}: {done.stdout}{done.stderr}"


def check_the_replayer_knows_every_flag_that_the_job_uses():
    help_text = run(program("replayer"), "run", "--help").stdout
    args = pod_of(one("Job", values("replay")))["containers"][0]["args"]
    for flag in {arg for arg in args if arg.startswith("-")}:
        assert flag in help_text, f"replayer run does not know {flag}"
