//! One revision, beside `kubectl rollout history --revision`: pod templates that hold nearly everything.

use serde_json::{Value, json};

use crate::support::{
    controlplane::ControlPlane,
    history::same_history,
    rollbackd::Rollbackd,
    space::{Space, daemonset},
};

/// Makes a DaemonSet of each template, and compares its first revision in every form: with kubectl's text,
/// with kubectl's JSON, and with what kubectl reads from rollbackd's YAML.
async fn same_text(templates: Vec<(&str, Value)>) {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let api = &rollbackd.api;
    for (name, template) in templates {
        let mut object = daemonset(name, "img:1");
        merge(&mut object["spec"]["template"], &template);
        // No pods are needed, and kubectl does not show this field.
        object["spec"]["template"]["spec"]["nodeName"] = "nowhere".into();
        space.kubectl.create(&object).await;
        same_history(&space, api, name, |all| all.len() == 1).await;

        let path = format!("{}/revisions/1", space.path(name));
        let asked = ["rollout", "history", "daemonset", name, "--revision=1"];
        assert_eq!(api.text(&path).await, space.kubectl.ok(&asked).await, "{name}");
        let shown = api.get(&path).await.expect(200)["template"].clone();
        let json = space.kubectl.ok(&[&asked[..], &["-o", "json"]].concat()).await;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(shown, without_nulls(json["spec"]["template"].clone()), "{name}");
        let yaml = api.get_as(&path, "application/yaml").await;
        assert_eq!((yaml.status, yaml.header("content-type")), (200, "application/yaml"));
        assert_eq!(read(&space, &yaml.text).await, shown, "{name}: {}", yaml.text);
    }
}

/// What kubectl reads from the YAML of a pod template.
async fn read(space: &Space, yaml: &str) -> Value {
    let lines: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
    let object = format!("apiVersion: v1\nkind: PodTemplate\nmetadata:\n  name: agent\ntemplate:\n{lines}");
    let args = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
    let read = space.kubectl.feed_bytes(&args, object.as_bytes()).await;
    serde_json::from_str::<Value>(&read).unwrap()["template"].clone()
}

/// Go writes null for an empty list, and up to Kubernetes 1.33 for `creationTimestamp`.
fn without_nulls(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(|value| *value = without_nulls(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| *value = without_nulls(value.take())),
        _ => {}
    }
    value
}

/// Puts fields into an object; a list of containers is merged into the first one.
fn merge(object: &mut Value, fields: &Value) {
    for (key, value) in fields.as_object().expect("an object") {
        match (object.get_mut(key), value) {
            (Some(Value::Array(list)), Value::Object(_)) => merge(&mut list[0], value),
            (Some(old @ Value::Object(_)), Value::Object(_)) => merge(old, value),
            _ => object[key] = value.clone(),
        }
    }
}

/// Fields of the first container.
fn main_container(fields: Value) -> Value {
    json!({"spec": {"containers": fields}})
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn metadata_and_containers_read_as_in_kubectl() {
    let long = "x".repeat(141);
    same_text(vec![
        ("bare", json!({})),
        (
            "metadata",
            json!({
                "metadata": {
                    "labels": {"app.kubernetes.io/part-of": "logging", "z": "", "A": "1"},
                    "annotations": {
                        "kubectl.kubernetes.io/last-applied-configuration": "{}",
                        "kubectl.kubernetes.io/restartedAt": "2026-11-23T23:00:00Z",
                        "description": "first line\nsecond line\n",
                        "long": long, "empty": "", "emoji": "🚀 <größe> & \"日本語\"", "blank": "  ",
                        "newline": "\n", "last": "one line\n",
                    },
                },
                "spec": {"serviceAccountName": "agent", "serviceAccount": "agent"},
            }),
        ),
        (
            "only-last-applied",
            json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}}),
        ),
        (
            "commands",
            json!({"spec": {
                "initContainers": [
                    {"name": "prepare", "image": "busybox:1.37", "command": ["sh", "-c", "a &&\n  b\n"]},
                    {"name": "sidecar", "image": "sidecar:1", "restartPolicy": "Always", "args": ["", " "]},
                ],
                "containers": {
                    "command": ["/bin/sh", "-c"],
                    "args": ["set -e\nexec agent \\\n  --verbose\n", "", "tail", "$(NODE) \"quoted\" 'x' \\"],
                    "workingDir": "/", "stdin": true, "tty": true, "imagePullPolicy": "Never",
                },
            }}),
        ),
        (
            "ports",
            json!({"spec": {
                "hostNetwork": false,
                "initContainers": [{"name": "one", "image": "i", "ports": [{"containerPort": 80, "name": "web"}]}],
                "containers": {"ports": [
                    {"name": "http", "containerPort": 8080, "hostPort": 80},
                    {"containerPort": 53, "protocol": "UDP", "hostIP": "10.0.0.1", "hostPort": 53},
                    {"containerPort": 9, "protocol": "SCTP"},
                ]},
            }}),
        ),
        (
            "resources",
            main_container(json!({"resources": {
                "limits": {"memory": "204800Ki", "cpu": "1.5", "example.com/gpu": "2", "ephemeral-storage": "1e9",
                    "hugepages-2Mi": "4Mi"},
                "requests": {
                    "memory": "100M", "cpu": 1, "hugepages-2Mi": "4Mi", "example.com/gpu": 2,
                    "ephemeral-storage": "0.5Gi",
                },
            }, "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]})),
        ),
        (
            "security",
            json!({"spec": {
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 1000},
                "initContainers": [
                    {"name": "init", "image": "i", "securityContext": {"seccompProfile": {"type": "Unconfined"}}},
                ],
                "containers": {
                    "securityContext": {
                        "privileged": true,
                        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                        "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/agent.json"},
                    },
                    "lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}},
                },
                "hostPID": true, "hostIPC": true, "shareProcessNamespace": false, "runtimeClassName": "kata",
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}],
                }}},
                "imagePullSecrets": [{"name": "registry"}], "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}],
                "dnsConfig": {"nameservers": ["10.0.0.2"], "options": [{"name": "ndots", "value": "2"}]},
            }}),
        ),
    ])
    .await;
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn probes_environment_and_mounts_read_as_in_kubectl() {
    let probes = |liveness: Value, readiness: Value, startup: Value| {
        main_container(json!({
            "livenessProbe": liveness, "readinessProbe": readiness, "startupProbe": startup,
            "ports": [{"name": "web", "containerPort": 80}],
        }))
    };
    same_text(vec![
        (
            "http-probes",
            probes(
                json!({
                    "httpGet": {"path": "/healthz?full=1&a=b#c", "port": "web", "host": "::1", "scheme": "HTTPS"},
                    "initialDelaySeconds": 5, "timeoutSeconds": 2, "periodSeconds": 7, "failureThreshold": 4,
                }),
                json!({
                    "httpGet": {
                        "path": "größe/%2F/[x]{y}/ é~!$'()*,;:@", "port": 8080, "host": "example.com",
                        "httpHeaders": [{"name": "X-A", "value": "b"}],
                    },
                    "successThreshold": 2,
                }),
                json!({"httpGet": {"path": "*", "port": 1}, "terminationGracePeriodSeconds": 3}),
            ),
        ),
        (
            "http-without-path",
            probes(
                json!({"httpGet": {"port": 80}}),
                json!({"httpGet": {"port": 80, "path": "/"}}),
                json!({"httpGet": {"port": 80, "path": "//double//slash/../x/"}}),
            ),
        ),
        (
            "other-probes",
            probes(
                json!({"exec": {"command": ["cat", "/tmp/ready flag", "", "$(X)"]}}),
                json!({"tcpSocket": {"port": "web", "host": "10.0.0.1"}, "periodSeconds": 1}),
                json!({"grpc": {"port": 9000, "service": "agent.v1"}, "failureThreshold": 30}),
            ),
        ),
        ("more-probes", probes(json!({"grpc": {"port": 9000}}), json!({"tcpSocket": {"port": 80}}), json!(null))),
        (
            "environment",
            main_container(json!({
                "envFrom": [
                    {"configMapRef": {"name": "settings", "optional": true}},
                    {"prefix": "DB_", "secretRef": {"name": "database"}},
                    {"secretRef": {"name": "other", "optional": false}},
                ],
                "env": [
                    {"name": "EMPTY"}, {"name": "PLAIN", "value": "x"}, {"name": "TRAILING", "value": "a\n"},
                    {"name": "SCRIPT", "value": "a\n\n  b"}, {"name": "TABBED", "value": "a b"},
                    {"name": "UNICODE", "value": "größe 日本語 🚀"}, {"name": "with.dots-and_more", "value": "$(PLAIN)"},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MILLIS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "MEBIS", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                    {"name": "BYTES", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
                    {"name": "DISK", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage", "divisor": "1Ki"}}},
                    {"name": "OTHERS", "valueFrom": {"resourceFieldRef": {"containerName": "main", "resource": "requests.cpu"}}},
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "database", "key": "password"}}},
                    {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "level", "optional": true}}},
                ],
                "resources": {
                    "limits": {"cpu": "1500m", "ephemeral-storage": "10Gi"},
                    "requests": {"memory": "100M", "cpu": "20m"},
                },
            })),
        ),
        (
            "mounts",
            json!({"spec": {
                "containers": {
                    "volumeMounts": [
                        {"name": "b", "mountPath": "/var/log", "readOnly": true},
                        {"name": "a", "mountPath": "/etc/agent.conf", "subPath": "a \"b\" \\ ü"},
                        {"name": "a", "mountPath": "/data", "subPathExpr": "$(NODE)", "mountPropagation": "None"},
                    ],
                    "volumeDevices": [{"name": "c", "devicePath": "/dev/xvdb"}, {"name": "d", "devicePath": "/dev/xvda"}],
                },
                "volumes": [
                    {"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/var/log", "type": "Directory"}},
                    {"name": "c", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}},
                    {"name": "d", "ephemeral": {"volumeClaimTemplate": {"spec": {
                        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                        "volumeMode": "Block",
                    }}}},
                ],
            }}),
        ),
    ])
    .await;
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn volumes_read_as_in_kubectl() {
    let claim = |metadata: Value, more: Value| {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        merge(&mut spec, &more);
        json!({"volumeClaimTemplate": {"metadata": metadata, "spec": spec}})
    };
    let common = json!([
        {"name": "host", "hostPath": {"path": "/"}},
        {"name": "typed-host", "hostPath": {"path": "/run/x", "type": "Socket"}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {"name": "disk-scratch", "emptyDir": {"sizeLimit": "1.5G"}}, {"name": "plain-scratch", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "a", "path": "b"}]}},
        {"name": "credentials", "secret": {"secretName": "database", "optional": true, "defaultMode": 256}},
        {"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607, "audience": "vault"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"secret": {"name": "extra", "optional": true}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]}},
        {"name": "nothing-projected", "projected": {"sources": []}},
        {"name": "pod", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 420},
            {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu"}},
        ]}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "share", "nfs": {"server": "10.0.0.1", "path": "/export", "readOnly": true}},
        {"name": "driver", "csi": {
            "driver": "csi.example.com", "fsType": "xfs", "readOnly": true,
            "volumeAttributes": {"size": "1", "zone": "a", "long": "y".repeat(150)},
            "nodePublishSecretRef": {"name": "s"},
        }},
        {"name": "bare-driver", "csi": {"driver": "csi.example.com"}},
        {"name": "work", "ephemeral": claim(
            json!({"labels": {"a": "1", "b": "2"}, "annotations": {"n": "line\nline"}}),
            json!({"storageClassName": "fast", "volumeMode": "Block", "volumeName": "pv-1",
                "dataSource": {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": "seed"}}),
        )},
        {"name": "bare-work", "ephemeral": claim(json!({}), json!({}))},
        {"name": "model", "image": {"reference": "registry.example.com/model:1", "pullPolicy": "IfNotPresent"}},
    ]);
    let rare = json!([
        {"name": "iscsi", "iscsi": {
            "targetPortal": "10.0.0.1:3260", "iqn": "iqn.2001-04.com.example:a", "lun": 3, "fsType": "ext4",
            "portals": ["10.0.0.2:3260", "10.0.0.3:3260"], "secretRef": {"name": "chap"},
            "chapAuthSession": true, "initiatorName": "iqn.2001-04.com.example:b",
        }},
        {"name": "fc", "fc": {"targetWWNs": ["50060e801049cfd1", "50060e801049cfd2"], "lun": 0, "readOnly": true}},
        {"name": "wwids", "fc": {"wwids": ["3600508b400105e210000900000490000"]}},
        {"name": "rbd", "rbd": {"monitors": ["10.0.0.1:6789", "10.0.0.2:6789"], "image": "i", "fsType": "ext4"}},
        {"name": "cephfs", "cephfs": {"monitors": ["10.0.0.1:6789"], "path": "/p", "secretRef": {"name": "ceph"}}},
        {"name": "glusterfs", "glusterfs": {"endpoints": "e", "path": "p"}},
        {"name": "git", "gitRepo": {"repository": "https://example.com/x.git", "revision": "abc"}},
        {"name": "gce", "gcePersistentDisk": {"pdName": "d", "fsType": "ext4", "partition": 1}},
        {"name": "aws", "awsElasticBlockStore": {"volumeID": "v", "readOnly": true}},
        {"name": "cinder", "cinder": {"volumeID": "v", "secretRef": {"name": "s"}}},
        {"name": "azure-file", "azureFile": {"secretName": "s", "shareName": "t"}},
        {"name": "azure-disk", "azureDisk": {"diskName": "d", "diskURI": "https://example.com/d.vhd", "kind": "Dedicated"}},
        {"name": "vsphere", "vsphereVolume": {"volumePath": "[ds] a.vmdk", "fsType": "ext4", "storagePolicyName": "p"}},
        {"name": "photon", "photonPersistentDisk": {"pdID": "p"}},
        {"name": "portworx", "portworxVolume": {"volumeID": "v"}},
        {"name": "quobyte", "quobyte": {"registry": "10.0.0.1:7861", "volume": "v", "user": "u"}},
        {"name": "scaleio", "scaleIO": {"gateway": "g", "system": "s", "secretRef": {"name": "s"}, "volumeName": "v"}},
        {"name": "storageos", "storageos": {"volumeName": "v", "volumeNamespace": "n"}},
        {"name": "flex", "flexVolume": {"driver": "example/lvm", "options": {"size": "1", "fs": "xfs"}}},
        {"name": "flocker", "flocker": {"datasetName": "d"}},
    ]);
    same_text(vec![
        ("common", json!({"spec": {"volumes": common}})),
        ("rare", json!({"spec": {"volumes": rare}})),
    ])
    .await;
}

#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn placement_reads_as_in_kubectl() {
    same_text(vec![
        (
            "placement",
            json!({"spec": {
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {
                        "matchLabels": {"b": "2", "a": "1"},
                        "matchExpressions": [
                            {"key": "tier", "operator": "In", "values": ["b", "a"]},
                            {"key": "old", "operator": "DoesNotExist"}, {"key": "new", "operator": "Exists"},
                            {"key": "c", "operator": "NotIn", "values": ["z", "y"]},
                        ],
                    }},
                    {"maxSkew": 2, "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway"},
                    {"maxSkew": 3, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}},
                ],
                "priorityClassName": "system-node-critical", "priority": 2_000_001_000,
                "nodeSelector": {"kubernetes.io/os": "linux", "disk": "ssd", "empty": ""},
                "tolerations": [
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                    {"key": "dedicated", "operator": "Equal", "value": "logs", "effect": "NoSchedule"},
                    {"key": "any-effect", "operator": "Exists"}, {"key": "default-operator", "value": "x"},
                    {"key": "no-value", "effect": "PreferNoSchedule"}, {"operator": "Exists"},
                    {"operator": "Exists", "effect": "NoExecute"},
                ],
            }}),
        ),
        ("everything-tolerated", json!({"spec": {"tolerations": [{"operator": "Exists"}]}})),
    ])
    .await;
}

/// The YAML is for pasting into a manifest: kubectl must read each string as the same string.
#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn strings_that_look_like_something_else_stay_strings() {
    let strings = [
        "",
        " ",
        "~",
        "null",
        "Null",
        "true",
        "False",
        "yes",
        "No",
        "on",
        "OFF",
        "y",
        "n",
        "0",
        "-1",
        "+1",
        "012",
        "0o12",
        "0x1F",
        "0b1",
        "1_000",
        "1e3",
        "1.0",
        ".5",
        "5.",
        "-.5",
        "1e",
        ".inf",
        "-.Inf",
        ".nan",
        "NaN",
        "1:30",
        "12:30:45",
        "190:20:30",
        "2026-11-23",
        "2026-11-23T12:00:00Z",
        "2026-11-23 12:00:00",
        "-",
        "--",
        "---",
        "...",
        "- a",
        "? a",
        ": a",
        "a: b",
        "a:",
        ":a",
        "a #b",
        "#a",
        "!a",
        "&a",
        "*a",
        "|",
        ">",
        "|-\na",
        "%a",
        "@a",
        "`a`",
        "[a]",
        "{a: b}",
        "'a'",
        "\"a\"",
        "it's",
        "a\\nb",
        "\\",
        "=",
        "<<",
        "a,b",
        " a",
        "a ",
        "a\n",
        "\na",
        "a\n\n",
        "a\n b\n",
        " a\nb",
        "\n",
        "\n\n",
        "a\r\nb",
        "a\rb",
        "a\tb",
        "\ta",
        "\n\n\ta",
        "\t\na",
        "a\n\tb\n",
        "\ta\n\tb",
        "\n\n\ta",
        "\t\na",
        "a\n\tb\n",
        "a\n\n\nb",
        "a \nb",
        "a\n ",
        "é\n日本語 🚀",
        "\u{0}",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{85}",
        "\u{a0}",
        "\u{2028}",
        "a\u{2029}b",
        "\u{feff}",
        "\u{feff}a\nb",
        "\u{202e}",
        "\u{fffd}",
        "\u{ffff}",
        "\u{10ffff}",
        "a\u{85}\nb",
        "a\u{2028}\nb",
    ];
    let long = ["word ".repeat(60), "x".repeat(300), format!("{}\n", "line \n".repeat(20)), " y".repeat(200)];
    let strings = strings.into_iter().map(str::to_owned).chain(long);
    let variables: Vec<Value> =
        strings.enumerate().map(|(i, text)| json!({"name": format!("V{i}"), "value": text})).collect();
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let mut object = daemonset("agent", "img:1");
    merge(&mut object["spec"]["template"], &main_container(json!({"env": variables})));
    object["spec"]["template"]["metadata"]["annotations"] =
        json!({"yes": "no", "1": "2", "true": "x", "a.b/on": "", "null": "~"});
    object["spec"]["template"]["spec"]["nodeName"] = "nowhere".into();
    space.kubectl.create(&object).await;
    same_history(&space, &rollbackd.api, "agent", |all| all.len() == 1).await;

    let path = format!("{}/revisions/1", space.path("agent"));
    let shown = rollbackd.api.get(&path).await.expect(200)["template"].clone();
    let yaml = rollbackd.api.get_as(&path, "application/yaml").await.text;
    let read = read(&space, &yaml).await;
    let environment = |template: &Value| template["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    for (read, shown) in environment(&read).iter().zip(environment(&shown)) {
        assert_eq!(*read, shown, "{yaml}");
    }
    assert_eq!(read, shown);
}

/// A script may be indented with tabs.
#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn tabs_are_printed_as_kubectl_prints_them() {
    let script = "if true; then\n\techo\tyes\n\tfi\t\n";
    let template = json!({
        "metadata": {"annotations": {"tab": "a\tb", "long": format!("x\t{}\ty", "z".repeat(200))}},
        "spec": {"containers": [{
            "name": "main", "image": "img:1", "command": ["sh", "-c", script], "args": ["a\tb"],
            "env": [{"name": "SCRIPT", "value": script}, {"name": "TAB", "value": "\t"}],
            "livenessProbe": {"exec": {"command": ["sh", "-c", "a\tb"]}},
        }]},
    });
    same_text(vec![("agent", template)]).await;

    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let mut object = daemonset("agent", "img:1");
    for cause in ["a\tb", "none", "\tc\t\td\t"] {
        object["metadata"]["annotations"]["kubernetes.io/change-cause"] = cause.into();
        object["spec"]["template"]["spec"]["containers"][0]["image"] = format!("img:{}", cause.len()).into();
        space.kubectl.apply(&object).await;
        space.observed("agent").await;
    }
    same_history(&space, &rollbackd.api, "agent", |all| all.len() == 3).await;
}

/// The only departure from kubectl's bytes: what moves the cursor, ends a line or reorders its neighbours is
/// escaped. kubectl replaces ESC and CR, so that a newline makes a row and a bidirectional control reorders.
#[tokio::test]
#[ignore = "compares with the real kubectl"]
async fn what_could_forge_a_line_is_escaped() {
    let space = Space::new(ControlPlane::shared()).await;
    let rollbackd = Rollbackd::start().await;
    let hostile = "x\u{1b}[2J\u{202e}\r\n9         forged\ty\u{2028}\u{85}\u{7f}";
    let tabless = r"x\u{1b}[2J\u{202e}\r\n9         forged<TAB>y\u{2028}\u{85}\u{7f}";
    let escaped = tabless.replace("<TAB>", "\t");
    let mut object = daemonset("agent", "img:1");
    object["metadata"]["annotations"]["kubernetes.io/change-cause"] = hostile.into();
    let container = main_container(json!({
        "livenessProbe": {"exec": {"command": [hostile]}}, "command": [hostile], "env": [{"name": "A", "value": hostile}],
    }));
    merge(&mut object["spec"]["template"], &container);
    space.kubectl.create(&object).await;
    let path = format!("{}/revisions", space.path("agent"));
    rollbackd.api.shows(&path, "the revision", |list| list["items"][0]["current"] == true).await;

    let text = rollbackd.api.text(&path).await;
    // In kubectl's table a tab ends a column.
    let cell = tabless.replace("<TAB>", "  ");
    assert_eq!(text, format!("daemonset.apps/agent \nREVISION  CHANGE-CAUSE\n1         {cell}\n\n"));
    let shown = space.kubectl.ok(&["rollout", "history", "daemonset", "agent"]).await;
    assert!(shown.contains("\n9         forged") && shown.contains('\u{202e}'), "{shown:?}");

    // An argument and a variable have a line for each of theirs in kubectl's layout, a probe has one.
    let text = rollbackd.api.text(&format!("{path}/1")).await;
    let (first, second) = escaped.split_once(r"\n").unwrap();
    for part in [
        format!("    Command:\n      {first}\n      {second}\n"),
        format!("    Liveness:\texec [{escaped}] delay=0s"),
        format!("      A:\t{first}\n      \t{second}\n"),
    ] {
        assert!(text.contains(&part), "{part}\nis not in\n{text}");
    }
    let shown = space.kubectl.ok(&["rollout", "history", "daemonset", "agent", "--revision=1"]).await;
    assert!(shown.contains("exec [x") && shown.contains("\n9         forged"), "{shown:?}");
    assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{text:?}");

    // JSON holds the text as it is.
    let list = rollbackd.api.get(&path).await.expect(200);
    assert_eq!(list["items"][0]["changeCause"], hostile);
}
