//! rollbackd as the shipped manifests install it. kwok's nodes run no containers, so the test is the kubelet: it takes
//! arguments, environment, user, groups, mounts and probes from the pod that the control plane made of the Deployment,
//! and starts the binary by them, on a root of its own that is read-only. Through it go the examples.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use axum::{Router, extract::State, routing::post};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use crate::support::{
    controlplane::ControlPlane,
    kubectl::Kubectl,
    space::daemonset,
    wait::{until, until_is},
};

/// Where in the container an image has its binary; the Dockerfile says so.
const ENTRYPOINT: &str = "/usr/local/bin/rollbackd";

struct Installed {
    kubectl: Kubectl,
    folder: tempfile::TempDir,
    process: Child,
    url: String,
    pod: Value,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} of {value}"))
}

impl Installed {
    async fn start(control_plane: &ControlPlane) -> Self {
        let kubectl = Kubectl::new(control_plane, "admin", "rollbackd");
        let deploy = root().join("deploy");
        let install = |path: &str| deploy.join(path).to_str().unwrap().to_owned();
        let anywhere = Kubectl::new(control_plane, "admin", "");
        anywhere.ok(&["apply", "-k", &install("overlays/sqlite")]).await;
        anywhere.ok(&["apply", "-f", &install("components/admission-policy/policy.yaml")]).await;
        let pod = until("the Deployment's pod", async || {
            let pods = kubectl.list("pods").await;
            pods.into_iter().next().ok_or("no pod")
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mounts = mounts(&kubectl, &pod, folder.path()).await;
        let process = start(&kubectl, &pod, folder.path(), &mounts).await;
        let container = &pod["spec"]["containers"][0];
        let port = &container["ports"][0]["containerPort"];
        let installed = Self { kubectl, folder, process, url: format!("http://127.0.0.1:{port}"), pod };
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let probe = &installed.pod["spec"]["containers"][0][probe]["httpGet"];
            assert_eq!(probe["port"], "http");
            let url = format!("{}{}", installed.url, text(probe, "/path"));
            until(&url, async || {
                let answer = reqwest::get(&url).await.map_err(|error| error.to_string())?;
                let status = answer.status();
                if status == 200 {
                    Ok(())
                } else {
                    Err(format!("{status}: {}", answer.text().await.unwrap()))
                }
            })
            .await;
        }
        installed
    }

    /// A file with a token for rollbackd of a new account.
    async fn token(&self, account: &str) -> PathBuf {
        let token = self.kubectl.ok(&["create", "token", account, "--audience", "rollbackd"]).await;
        let file = self.folder.path().join(account);
        std::fs::write(&file, token).unwrap();
        file
    }

    async fn get(&self, path: &str, token: Option<&Path>) -> (StatusCode, Value) {
        let mut request = reqwest::Client::new().get(format!("{}{path}", self.url));
        if let Some(file) = token {
            request = request.bearer_auth(std::fs::read_to_string(file).unwrap().trim());
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

/// Makes what the kubelet would mount: the path in the container, where it lies, and whether it may be written.
async fn mounts(kubectl: &Kubectl, pod: &Value, folder: &Path) -> Vec<(String, PathBuf, bool)> {
    let group = u32::try_from(pod["spec"]["securityContext"]["fsGroup"].as_u64().unwrap()).unwrap();
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let mut made = Vec::new();
    for mount in pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap() {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("it is there");
        let at = folder.join(text(mount, "/name"));
        std::fs::create_dir(&at).unwrap();
        if let Some(sources) = volume["projected"]["sources"].as_array() {
            for source in sources {
                let (path, content) = projected(kubectl, pod, source).await;
                std::fs::write(at.join(path), content).unwrap();
            }
        } else {
            assert!(
                volume["emptyDir"].is_object() || volume["persistentVolumeClaim"].is_object(),
                "{volume}"
            );
            chown(&at, None, Some(group)).unwrap();
            std::fs::set_permissions(&at, PermissionsExt::from_mode(0o2775)).unwrap();
        }
        made.push((text(mount, "/mountPath").to_owned(), at, mount["readOnly"] != true));
    }
    made
}

async fn projected(kubectl: &Kubectl, pod: &Value, source: &Value) -> (String, String) {
    if let Some(token) = source["serviceAccountToken"].as_object() {
        assert!(!token.contains_key("audience"));
        let account = text(pod, "/spec/serviceAccountName");
        let lifetime = format!("--duration={}s", token["expirationSeconds"]);
        let bound = format!("--bound-object-name={}", text(pod, "/metadata/name"));
        let made =
            kubectl.ok(&["create", "token", account, &lifetime, "--bound-object-kind=Pod", &bound]).await;
        return (token["path"].as_str().unwrap().to_owned(), made);
    }
    if source["configMap"].is_object() {
        let name = text(source, "/configMap/name");
        let key = text(source, "/configMap/items/0/key");
        let content = until("the cluster's certificates", async || {
            let printed = kubectl.run(&["get", "configmap", name, "-o", "json"]).await;
            serde_json::from_str::<Value>(&printed.stdout).map_err(|_| printed)
        })
        .await;
        let content = content["data"][key].as_str().unwrap().to_owned();
        return (text(source, "/configMap/items/0/path").to_owned(), content);
    }
    assert_eq!(source["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"], "metadata.namespace", "{source}");
    (text(source, "/downwardAPI/items/0/path").to_owned(), text(pod, "/metadata/namespace").to_owned())
}

/// Starts the binary as the kubelet and a container runtime would.
async fn start(kubectl: &Kubectl, pod: &Value, folder: &Path, mounts: &[(String, PathBuf, bool)]) -> Child {
    let container = &pod["spec"]["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(
        (
            &security["readOnlyRootFilesystem"],
            &security["allowPrivilegeEscalation"],
            &security["capabilities"]["drop"]
        ),
        (&json!(true), &json!(false), &json!(["ALL"]))
    );
    // What is in the image: the binary, and the libraries of its base.
    let image = folder.join("image");
    let binary =
        std::env::var("ROLLBACKD_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_rollbackd").into());
    let put = |from: &str, to: &str| {
        let to = image.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    put(&binary, ENTRYPOINT);
    let linked = Command::new("ldd").arg(&binary).output().await.expect("ldd runs");
    for word in
        String::from_utf8(linked.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
    {
        put(word, word);
    }
    // No shell is in there, so everything is mounted from out here.
    let mut script = "set -e; mount --bind \"$image\" \"$image\"; ".to_owned();
    for (path, at, writable) in mounts {
        std::fs::create_dir_all(image.join(path.trim_start_matches('/'))).unwrap();
        let inside = format!("\"$image\"{path}");
        script += &format!("mount --bind '{}' {inside}; ", at.display());
        if !writable {
            script += &format!("mount -o remount,bind,ro {inside}; ");
        }
    }
    script += "mount -o remount,bind,ro \"$image\"; exec \"$@\"";

    let server =
        kubectl.ok(&["config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.server}"]).await;
    let (host, port) = server.strip_prefix("https://").and_then(|server| server.rsplit_once(':')).unwrap();
    let mut env = vec![format!("KUBERNETES_SERVICE_HOST={host}"), format!("KUBERNETES_SERVICE_PORT={port}")];
    for variable in container["env"].as_array().unwrap() {
        env.push(format!("{}={}", text(variable, "/name"), text(variable, "/value")));
    }
    let mut command = Command::new("setpriv");
    command
        .env("image", &image)
        .args([
            "--no-new-privs",
            "unshare",
            "--mount",
            "bash",
            "-c",
            &script,
            "bash",
            "env",
            "--ignore-environment",
        ])
        .args(&env)
        .args([
            "unshare",
            &format!("--root={}", image.display()),
            &format!("--setgid={}", security["runAsGroup"]),
            &format!("--setuid={}", security["runAsUser"]),
            ENTRYPOINT,
        ])
        .args(container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()))
        .stdout(std::fs::File::create(folder.join("stdout")).unwrap())
        .kill_on_drop(true);
    command.spawn().expect("setpriv and unshare run (util-linux)")
}

/// The test makes mounts and changes users.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(1) == Some("0"))
}

#[tokio::test]
#[ignore = "applies the manifests to a real API server"]
async fn it_serves_as_the_deployment_says_and_the_examples_work_through_it() {
    if !is_root() {
        println!("skipped: only root can make mounts and become another user");
        return;
    }
    let control_plane = ControlPlane::private("installed");
    let mut installed = Installed::start(&control_plane).await;
    let pid = installed.process.id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for expected in [
        "Uid:\t65532\t65532\t65532\t65532",
        "Gid:\t65532\t65532\t65532\t65532",
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
    ] {
        assert!(status.lines().any(|line| line == expected), "{expected}: {status}");
    }

    let kubectl = installed.kubectl.clone();
    kubectl.ok(&["create", "namespace", "monitoring"]).await;
    let there = Kubectl::new(&control_plane, "admin", "monitoring");
    there.create(&daemonset("agent", "img:1")).await;
    there.ok(&["rollout", "status", "daemonset/agent", "--timeout=180s"]).await;
    there.ok(&["set", "image", "daemonset/agent", "main=img:2"]).await;
    there.ok(&["rollout", "status", "daemonset/agent", "--timeout=180s"]).await;
    for (account, role) in [("looks", "rollbackd-viewer"), ("rolls-back", "rollbackd-operator")] {
        kubectl.ok(&["create", "serviceaccount", account]).await;
        let binding = ["create", "rolebinding", account, "--clusterrole", role, "--serviceaccount"];
        there.ok(&[&binding[..], &[&format!("rollbackd:{account}")]].concat()).await;
    }
    for path in ["examples/on-call/on-call.yaml", "examples/slack/rbac.yaml"] {
        let anywhere = Kubectl::new(&control_plane, "admin", "");
        anywhere.ok(&["apply", "-f", root().join("deploy").join(path).to_str().unwrap()]).await;
    }

    assert_eq!(installed.get("/daemonsets", None).await.0, 401);
    let looks = installed.token("looks").await;
    until_is("the current revision", (StatusCode::OK, json!(2)), async || {
        let (status, agent) = installed.get("/daemonsets/monitoring/agent", Some(&looks)).await;
        (status, agent["currentRevision"].clone())
    })
    .await;

    the_reader_of_the_readme(&installed, &looks).await;
    the_script(&installed, &looks).await;
    the_slack_command(&installed, &there).await;

    // It stops in the time that its pod has, and in order.
    let grace = installed.pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(Command::new("kill").args(["-TERM", &pid.to_string()]).status().await.unwrap().success());
    let stopped = tokio::time::timeout(Duration::from_secs(grace), installed.process.wait()).await;
    assert_eq!(stopped.expect("it stops in time").unwrap().code(), Some(0));
    let log = std::fs::read_to_string(installed.folder.path().join("stdout")).unwrap();
    let is_chained = |line: &str| line.contains(r#""log":"audit""#) && line.contains(r#""hash":""#);
    assert!(log.lines().any(is_chained), "{log}");
    assert!(installed.folder.path().join("store/rollbackd.db").exists());
}

async fn the_reader_of_the_readme(installed: &Installed, looks: &Path) {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let reader = readme.split("```js\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let reader = reader.replace("/monitoring/log-agent/", "/monitoring/agent/");
    let program = format!("const {{ token, rollbackd }} = process.env;\n{reader}");
    let mut node = Command::new("node");
    node.args(["--input-type=module", "--eval", &program]).env("rollbackd", &installed.url);
    node.env("token", std::fs::read_to_string(looks).unwrap().trim());
    let output =
        tokio::time::timeout(Duration::from_secs(30), node.output()).await.expect("the stream ends").unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && printed.contains("event: complete\n"), "{printed}");
}

async fn the_script(installed: &Installed, looks: &Path) {
    let rolls_back = installed.token("rolls-back").await;
    let run = async |token: &Path, args: &[&str]| {
        let mut command = Command::new(root().join("deploy/examples/script/rollback"));
        command.args(args).env("ROLLBACKD_URL", &installed.url).env("ROLLBACKD_TOKEN_FILE", token);
        let output = command.output().await.expect("bash runs the script");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, _, told) = run(looks, &["monitoring", "agent", "looking"]).await;
    assert!(code == 1 && told.contains("(403)") && told.contains("daemonsets/rollback"), "{code} {told}");
    let (code, changes, told) =
        run(&rolls_back, &["monitoring", "agent", "--to", "1", "--dry-run", "trying"]).await;
    assert!(code == 0 && changes.contains("/spec/containers/0/image"), "{code} {changes} {told}");
    let (code, ended, told) = run(&rolls_back, &["monitoring", "agent", "it's \"broken\""]).await;
    let ended: Value = serde_json::from_str(&ended).unwrap_or_else(|_| panic!("{code} {ended} {told}"));
    assert_eq!(
        (code, &ended["state"], &ended["reason"], &ended["newRevision"]),
        (0, &json!("succeeded"), &json!("it's \"broken\""), &json!(3)),
        "{told}"
    );
    let (code, skipped, told) = run(&rolls_back, &["monitoring", "agent", "--to", "3", "again"]).await;
    assert!(code == 0 && skipped.contains(r#""state": "skipped""#), "{code} {skipped} {told}");
    let (code, _, told) = run(&rolls_back, &["monitoring", "agent", "--to", "99", "no such"]).await;
    assert!(code == 1 && told.contains("unable to find specified revision 99 in history"), "{told}");
    assert_eq!(run(&rolls_back, &["monitoring", "agent"]).await.0, 2);
}

async fn the_slack_command(installed: &Installed, there: &Kubectl) {
    // Slack's end: takes what is said by response_url.
    let (sender, mut said) = mpsc::unbounded_channel::<Value>();
    let hook = Router::new()
        .route(
            "/commands/1",
            post(async |State(said): State<mpsc::UnboundedSender<Value>>, body: String| {
                said.send(serde_json::from_str(&body).unwrap()).unwrap();
            }),
        )
        .with_state(sender);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slack = format!("http://{}/commands/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, hook).await });

    let write = |name: &str, content: &str| {
        let file = installed.folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        file
    };
    let token = installed.token("slack").await;
    let people = json!({
        "U1": {"user": "jane@example.com", "groups": ["oncall"]},
        "U2": {"user": "joe@example.com", "groups": ["oncall"]},
        "U3": {"user": "jane@example.com"},
    });
    let mut command = Command::new("node")
        .arg(root().join("deploy/examples/slack/slack.mjs"))
        .env("ROLLBACKD_URL", &installed.url)
        .env("ROLLBACKD_TOKEN_FILE", token)
        .env("SLACK_SIGNING_SECRET_FILE", write("secret", "8f742231b10e8888abcd99yyyzzz85a5\n"))
        .env("PEOPLE_FILE", write("people", &people.to_string()))
        .env("SLACK_HOOKS", &slack)
        .env("PORT", "0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node runs");
    let mut lines = BufReader::new(command.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("it listens");
    let url = format!("http://127.0.0.1:{}/", line.strip_prefix("listening on ").unwrap());

    let http = reqwest::Client::new();
    let send = async |signature: &str, time: u64, body: &str| {
        let request = http.post(&url).header("content-type", "application/x-www-form-urlencoded");
        let request =
            request.header("x-slack-request-timestamp", time).header("x-slack-signature", signature);
        let answer = request.body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let sign = async |time: u64, body: &str| {
        let signed = write("signed", &format!("v0:{time}:{body}"));
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-hmac", "8f742231b10e8888abcd99yyyzzz85a5", "-r"]).arg(signed);
        let output = openssl.output().await.expect("openssl runs");
        format!("v0={}", String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap())
    };
    let form = |user: &str, text: &str| {
        let pairs = [("user_id", user), ("text", text), ("response_url", &format!("{slack}1"))];
        serde_urlencoded::to_string(pairs).unwrap()
    };
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();

    // Not from Slack, an old one, and one that was heard before.
    let body = form("U1", "monitoring/agent img:1 <!channel> drops metrics");
    assert_eq!(send("v0=00", now(), &body).await.0, 401);
    let old = now() - 301;
    assert_eq!(send(&sign(old, &body).await, old, &body).await.0, 401);
    let time = now();
    let signature = sign(time, &body).await;
    assert_eq!(send(&signature, time, &(body.clone() + "x")).await.0, 401);
    let (status, answer) = send(&signature, time, &body).await;
    assert!(
        status == 200 && answer.contains("Rolling monitoring/agent back to previous"),
        "{status} {answer}"
    );
    assert_eq!(send(&signature, time, &body).await.0, 401);

    let mut next =
        async || tokio::time::timeout(Duration::from_secs(60), said.recv()).await.unwrap().unwrap();
    let made = next().await;
    let told = text(&made, "/text");
    assert!(told.contains("(by jane@example.com: img:1 &lt;!channel&gt; drops metrics)"), "{made}");
    assert_eq!(made["response_type"], "in_channel");
    let ended = next().await;
    assert!(text(&ended, "/text").starts_with("monitoring/agent: succeeded. "), "{ended}");
    let images = "jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(there.ok(&["get", "daemonset", "agent", "-o", images]).await, "img:2");
    let looks = installed.folder.path().join("looks");
    let list = until("the record", async || {
        let (status, list) = installed.get("/rollbacks?namespace=monitoring", Some(&looks)).await;
        if status == 200 { Ok(list) } else { Err(list) }
    })
    .await;
    let newest = &list["items"][0];
    assert_eq!(
        (text(newest, "/requestedBy/user"), text(newest, "/onBehalfOf/user")),
        ("system:serviceaccount:rollbackd:slack", "jane@example.com")
    );

    // Who may not: the command's account for a stranger, a person without the group, somebody unknown.
    for (user, why) in [("U2", "impersonate"), ("U3", "jane@example.com")] {
        let (body, time) = (form(user, "monitoring/agent to 1 trying"), now());
        assert_eq!(send(&sign(time, &body).await, time, &body).await.0, 200);
        let refused = next().await;
        assert!(
            text(&refused, "/text").contains(why) && refused["response_type"] == "ephemeral",
            "{refused}"
        );
        assert!(text(&refused, "/text").contains("forbidden"), "{refused}");
    }
    for (user, command, answered) in [
        ("U9", "monitoring/agent trying", "who you are"),
        ("U1", "monitoring/agent", "usage:"),
        ("U1", "../audit trying", "usage:"),
    ] {
        let (body, time) = (form(user, command), now());
        let (status, answer) = send(&sign(time, &body).await, time, &body).await;
        assert!(status == 200 && answer.contains(answered), "{command}: {answer}");
    }
}
