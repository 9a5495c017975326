# What the client suites share: an upstream, an Entrepot of their own, checks that count, and the walk that every
# registry client takes. Sourced by each suite; nothing is left behind, and no fixed port is taken.
# shellcheck shell=bash
set -uo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

suite=$(basename "$0")
passed=0 failed=0 skipped=0
work=$(mktemp -d)
# As root, Entrepot's Postgres runs as another user, who must get through to its own folder.
chmod 711 "$work"
# Runs one check: a command that must succeed. It stops at its first failing line, and its output is shown if it fails.
check() {
    local name=$1 output code
    shift
    output=$(set -e; "$@" 2>&1)
    code=$?
    if [ "$code" -eq 0 ]; then
        passed=$((passed + 1))
        printf '  ok       %s\n' "$name"
    else
        failed=$((failed + 1))
        printf '  FAILED   %s (exit code %s)\n' "$name" "$code"
        sed 's/^/           /' <<<"$output"
    fi
}

skip() {
    skipped=$((skipped + 1))
    printf '  skipped  %s\n' "$*"
}
skip_suite() {
    skip "$@"
    exit 0
}

finish() {
    local code=$? log
    trap - EXIT
    if [ "$code" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
    if [ "$failed" -ne 0 ]; then
        for log in "$work"/*.log; do
            [ -e "$log" ] || continue
            printf '  the end of %s:\n' "$(basename "$log")"
            tail -n 20 "$log" | cut -c1-240 | sed 's/^/           /'
        done
    fi
    stop_started
    # A daemon that had to be killed leaves its mounts.
    awk -v below="$work/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l
    rm -rf "$work"
    printf '%s: %s passed, %s failed, %s skipped\n' "$suite" "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ] || exit 1
    exit 0
}

# Succeeds if a command fails, and fails in words that somebody can act on.
refused() {
    local words=$1 output
    shift
    if output=$("$@" 2>&1); then
        printf 'this should have been refused: %s\n%s\n' "$*" "$output"
        return 1
    fi
    printf '%s\n' "$output"
    if grep -qiE 'panic|internal server error|50[0-9] |unexpected EOF' <<<"$output"; then return 1; fi
    grep -qiE -- "$words" <<<"$output"
}

# Starts Debian's registry as the upstream, with the images in it; every request is in upstream.log.
start_upstream() {
    local image
    have docker-registry || skip_suite "docker-registry, which serves as the upstream, is not installed"
    have skopeo || skip_suite "skopeo, which puts the images into the upstream, is not installed"
    images=$("$repository/tests/images/build") || die "there are no images to pull"
    free_port
    upstream=127.0.0.1:$free_port
    cat >"$work/upstream.yml" <<-CONFIG
		version: 0.1
		log: {level: warn, accesslog: {disabled: false}}
		storage: {filesystem: {rootdirectory: "$work/upstream"}}
		http: {addr: "$upstream"}
	CONFIG
    # It would take REGISTRY_… of the environment for its configuration.
    env -i docker-registry serve "$work/upstream.yml" >>"$work/upstream.log" 2>&1 </dev/null &
    started+=($!)
    wait_for_process "${started[-1]}" 20 curl -fsS -m 2 "http://$upstream/v2/" || die "the upstream did not start"
    for image in app tools; do
        bounded 60 skopeo copy -q --all --dest-tls-verify=false "oci:$images/$image:v1" "docker://$upstream/team/$image:v1" ||
            die "the image $image could not be put into the upstream"
    done
    # From here on, the log is of what is pulled.
    : >"$work/upstream.log"
}

# Starts Entrepot on its embedded defaults, and creates an upstream and a rule in the README's words.
start_entrepot() {
    have_postgres || skip_suite "Postgres, which entrepot up supervises, is not installed"
    free_port && registry=127.0.0.1:$free_port
    free_port && api=127.0.0.1:$free_port
    free_port && operations=127.0.0.1:$free_port
    key=admin:$(head -c 18 /dev/urandom | base64 | tr '+/' '-_')
    ENTREPOT_BOOTSTRAP_KEY=$key "$entrepot" up --data-dir "$work/data" --registry-listen "$registry" \
        --api-listen "$api" --operations-listen "$operations" >"$work/entrepot.log" 2>&1 </dev/null &
    started+=($!)
    wait_for_process "${started[-1]}" 60 "$entrepot" health --url "http://$operations/readyz" || die "entrepot up did not become ready"
    export ENTREPOT_API=http://$api ENTREPOT_KEY=$key
    bounded 30 "$entrepot" upstream create local --kind oci --endpoint "http://$upstream" \
        --allow-plain-http --allow-private-addresses >/dev/null || die "the upstream could not be created"
    bounded 30 "$entrepot" rule create demo --upstream local >/dev/null || die "the rule could not be created"
}

# The digests of an image's configuration and layers for one architecture, as it was published.
blobs_of() {
    python3 - "$images/$1" "$2" <<-'PYTHON'
		import json, pathlib, sys
		layout = pathlib.Path(sys.argv[1])
		read = lambda entry: json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_text())
		index = read(json.loads((layout / "index.json").read_text())["manifests"][0])
		(entry,) = [entry for entry in index["manifests"] if entry["platform"]["architecture"] == sys.argv[2]]
		manifest = read(entry)
		print(*[part["digest"] for part in [manifest["config"], *manifest["layers"]]], sep="\n")
	PYTHON
}

# Notes how far both logs have come, for what is asked of them next.
mark() {
    upstream_mark=$(wc -l <"$work/upstream.log")
    entrepot_mark=$(wc -l <"$work/entrepot.log")
}
upstream_requests() { tail -n "+$((upstream_mark + 1))" "$work/upstream.log" | grep '"\(GET\|HEAD\) /v2/'; }
answers_from_store() { tail -n "+$((entrepot_mark + 1))" "$work/entrepot.log" | grep -- 'pull.outcome="\?hit.*-> 20[06]'; }

asked_once() {
    local digest count
    for digest in $(blobs_of "$1" "$2"); do
        count=$(upstream_requests | grep -c "GET .*/blobs/$digest") || true
        printf '%s was fetched %s times\n' "$digest" "$count"
        [ "$count" -eq 1 ]
    done
}
not_asked() { ! upstream_requests; }
served_again() {
    local digest count
    for digest in $(blobs_of "$1" "$2"); do
        count=$(answers_from_store | grep -c "GET .*/blobs/$digest ") || true
        printf '%s was served %s times from the store\n' "$digest" "$count"
        [ "$count" -ge 1 ]
    done
}

architecture() {
    case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
    esac
}
other_architecture() { if [ "$(architecture)" = amd64 ]; then echo arm64; else echo amd64; fi; }

# The walk of every client. The suite says how it logs in, pulls, removes, and proves that an image is good:
#   login USER PASSWORD      pull IMAGE ARCHITECTURE      remove IMAGE      prove IMAGE
walk() {
    local here other image password
    here=$(architecture) other=$(other_architecture)
    password=$(bounded 30 "$entrepot" login-password) || die "there is no login password"

    check "is refused with a wrong password" refused 'unauthorized|401|denied|incorrect|invalid' wrong_password
    check "logs in" login AWS "$password"
    for image in app tools; do
        mark
        check "$image: the first pull works" pull "$registry/demo/team/$image:v1" "$here"
        check "$image: the upstream gave each blob once" asked_once "$image" "$here"
        check "$image: what came is good" prove "$registry/demo/team/$image:v1"
        check "$image: it is removed locally" remove "$registry/demo/team/$image:v1"
        mark
        check "$image: the second pull works" pull "$registry/demo/team/$image:v1" "$here"
        check "$image: the upstream was not asked" not_asked
        check "$image: Entrepot served every blob again" served_again "$image" "$here"
        check "$image: what came again is good" prove "$registry/demo/team/$image:v1"
        check "$image: it is removed once more" remove "$registry/demo/team/$image:v1"
    done
    check "pulls another platform of the image" pull "$registry/demo/team/app:v1" "$other"
    check "names an unknown tag as such" refused 'not found|unknown|404' pull "$registry/demo/team/app:nothing" "$here"
    check "names an unknown image as such" refused 'not found|unknown|404' pull "$registry/demo/team/nothing:v1" "$here"
    check "names a name without a rule as such" refused 'not found|unknown|404' pull "$registry/nowhere/app:v1" "$here"
    check "the repositories are listed" listed demo/team/app demo/team/tools
}

# Logs in as nobody should be able to; clients that only log in as they pull say it then.
wrong_password() { login AWS wrong-password; }

# Waits until repositories are listed: events reach the index a moment after a pull.
listed() {
    local name
    for name in "$@"; do
        wait_until 20 is_listed "$name" || { "$entrepot" repository list --output json && return 1; }
    done
}
is_listed() { bounded 30 "$entrepot" repository list --output json | grep -q "\"repositories/$1\""; }

trap finish EXIT
trap 'exit 130' INT TERM
entrepot=${ENTREPOT_BIN:-}
[ -x "$entrepot" ] || die "set ENTREPOT_BIN to the entrepot binary, such as target/release/entrepot"
