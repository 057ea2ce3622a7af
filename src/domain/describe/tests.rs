//! The expected texts are the output of `DescribePodTemplate` of k8s.io/kubectl v0.37.2 for the
//! same template, with `→` for a tab; only where kubectl and this crate part (hostile types, control
//! characters, cuts inside a character) are they written by hand.

use serde_json::{Value, json};

use super::pod_template;

const RICH: &str = r##"{
  "metadata": {
    "labels": {"app": "agent", "app.kubernetes.io/part-of": "logging"},
    "annotations": {
      "kubectl.kubernetes.io/last-applied-configuration": "{}",
      "kubernetes.io/description": "first line\nsecond line\n",
      "note": "one line\n"
    }
  },
  "spec": {
    "serviceAccountName": "agent",
    "initContainers": [{"name": "prepare", "image": "busybox:1.37", "restartPolicy": "Always"}],
    "containers": [
      {
        "name": "main",
        "image": "registry.example.com/agent:2.1.0",
        "ports": [
          {"name": "http", "containerPort": 8080, "hostPort": 80, "protocol": "TCP"},
          {"containerPort": 53, "protocol": "UDP"}
        ],
        "securityContext": {
          "privileged": true,
          "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/agent.json"}
        },
        "command": ["/bin/sh", "-c"],
        "args": ["set -e\nexec agent \\\n  --verbose", "tail"],
        "resources": {
          "limits": {"memory": "200Mi", "cpu": "1500m"},
          "requests": {"memory": "100Mi", "hugepages-2Mi": "4Mi"}
        },
        "livenessProbe": {
          "httpGet": {"path": "/healthz?full=1", "port": "http", "host": "::1", "scheme": "HTTPS"},
          "initialDelaySeconds": 5, "timeoutSeconds": 1, "periodSeconds": 10,
          "successThreshold": 1, "failureThreshold": 3
        },
        "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready flag"]}},
        "startupProbe": {"grpc": {"port": 9000, "service": "agent.v1"}, "periodSeconds": 2},
        "envFrom": [
          {"configMapRef": {"name": "settings", "optional": true}},
          {"prefix": "DB_", "secretRef": {"name": "database"}}
        ],
        "env": [
          {"name": "EMPTY"},
          {"name": "SCRIPT", "value": "a\n\nb"},
          {"name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
          {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}},
          {"name": "MEBIBYTES", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
          {"name": "SCRATCH", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage"}}},
          {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "database", "key": "password"}}},
          {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "level", "optional": true}}},
          {"name": "HIDDEN", "valueFrom": {"fileKeyRef": {"volumeName": "env", "path": "env", "key": "a"}}}
        ],
        "volumeMounts": [
          {"name": "logs", "mountPath": "/var/log", "readOnly": true},
          {"name": "settings", "mountPath": "/etc/agent.conf", "subPath": "a \"b\""}
        ],
        "volumeDevices": [{"name": "claim", "devicePath": "/dev/xvda"}]
      },
      {
        "name": "sidecar",
        "image": "sidecar:1",
        "ports": [{"containerPort": 9090, "protocol": "TCP"}],
        "livenessProbe": {"tcpSocket": {"port": 9090}, "failureThreshold": 3},
        "readinessProbe": {},
        "env": [{"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
        "volumeDevices": [{"name": "claim", "devicePath": "/dev/xvda"}]
      }
    ],
    "volumes": [
      {"name": "logs", "hostPath": {"path": "/var/log"}},
      {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
      {"name": "settings", "configMap": {"name": "settings", "defaultMode": 420}},
      {"name": "credentials", "secret": {"secretName": "database", "optional": true}},
      {"name": "token", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt"}},
        {"secret": {"name": "extra", "optional": true}},
        {"downwardAPI": {}},
        {"clusterTrustBundle": {"path": "ca"}}
      ]}},
      {"name": "pod", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu"}}
      ]}},
      {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}},
      {"name": "driver", "csi": {"driver": "csi.example.com", "volumeAttributes": {"size": "1", "zone": "a"}}},
      {"name": "work", "ephemeral": {"volumeClaimTemplate": {
        "metadata": {"labels": {"a": "1", "b": "2"}},
        "spec": {"storageClassName": "fast", "volumeMode": "Block", "dataSource": {"kind": "PersistentVolumeClaim", "name": "seed"}}
      }}},
      {"name": "model", "image": {"reference": "registry.example.com/model:1", "pullPolicy": "IfNotPresent"}},
      {"name": "disk", "iscsi": {"targetPortal": "10.0.0.1:3260", "iqn": "iqn.2001-04.com.example", "portals": ["a", "b"], "secretRef": {"name": "chap"}}},
      {"name": "channel", "fc": {"targetWWNs": ["50060e801049cfd1", "50060e801049cfd2"], "lun": 0}},
      {"name": "flex", "flexVolume": {"driver": "example/lvm", "options": {"size": "1", "fs": "xfs"}}},
      {"name": "future", "wormhole": {}}
    ],
    "topologySpreadConstraints": [
      {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {
        "matchLabels": {"app": "agent"},
        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "old", "operator": "DoesNotExist"}]
      }},
      {"maxSkew": 2, "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "system-node-critical",
    "nodeSelector": {"kubernetes.io/os": "linux", "disk": "ssd"},
    "tolerations": [
      {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
      {"key": "dedicated", "operator": "Equal", "value": "logs", "effect": "NoSchedule"},
      {"operator": "Exists"}
    ],
    "schedulingGroup": {"podGroupName": "agents"}
  }
}"##;

const RICH_TEXT: &str = r##"Pod Template:
  Labels:→app=agent
→app.kubernetes.io/part-of=logging
  Annotations:→kubernetes.io/description:
→  first line
→  second line
→note: one line
  Service Account:→agent
  Init Containers:
   prepare:
    Image:→busybox:1.37
    Port:→<none>
    Host Port:→<none>
    Environment:→<none>
    Mounts:→<none>
  Containers:
   main:
    Image:→registry.example.com/agent:2.1.0
    Ports:→8080/TCP (http), 53/UDP
    Host Ports:→80/TCP (http), 0/UDP
    SeccompProfile:→Localhost
      LocalhostProfile:→profiles/agent.json
    Command:
      /bin/sh
      -c
    Args:
      set -e
      exec agent \
        --verbose
      tail
    Limits:
      cpu:→1500m
      memory:→200Mi
    Requests:
      hugepages-2Mi:→4Mi
      memory:→100Mi
    Liveness:→http-get https://[::1]:http/healthz%3Ffull=1 delay=5s timeout=1s period=10s successThreshold=1 failureThreshold=3
    Readiness:→exec [cat /tmp/ready flag] delay=0s timeout=0s period=0s successThreshold=0 failureThreshold=0
    Startup:→grpc <pod>:9000 agent.v1 delay=0s timeout=0s period=2s successThreshold=0 failureThreshold=0
    Environment Variables from:
      settings→ConfigMap→Optional: true
      database→Secret with prefix 'DB_'→Optional: false
    Environment:
      EMPTY:→
      SCRIPT:→a
      →
      →b
      NODE:→ (v1:spec.nodeName)
      CORES:→2 (limits.cpu)
      MEBIBYTES:→100 (requests.memory)
      SCRATCH:→0 (limits.ephemeral-storage)
      PASSWORD:→<set to the key 'password' in secret 'database'>→Optional: false
      LEVEL:→<set to the key 'level' of config map 'settings'>→Optional: true
    Mounts:
      /etc/agent.conf from settings (rw,path="a \"b\"")
      /var/log from logs (ro)
    Devices:
      /dev/xvda from claim
   sidecar:
    Image:→sidecar:1
    Port:→9090/TCP
    Host Port:→0/TCP
    Liveness:→tcp-socket :9090 delay=0s timeout=0s period=0s successThreshold=0 failureThreshold=3
    Readiness:→unknown delay=0s timeout=0s period=0s successThreshold=0 failureThreshold=0
    Environment:
      CORES:→node allocatable (limits.cpu)
    Mounts:→<none>
    Devices:→<none>
      /dev/xvda from claim
  Volumes:
   logs:
    Type:→HostPath (bare host directory volume)
    Path:→/var/log
    HostPathType:→<none>
   scratch:
    Type:→EmptyDir (a temporary directory that shares a pod's lifetime)
    Medium:→Memory
    SizeLimit:→64Mi
   settings:
    Type:→ConfigMap (a volume populated by a ConfigMap)
    Name:→settings
    Optional:→false
   credentials:
    Type:→Secret (a volume populated by a Secret)
    SecretName:→database
    Optional:→true
   token:
    Type:→Projected (a volume that contains injected data from multiple sources)
    TokenExpirationSeconds:→3607
    ConfigMapName:→kube-root-ca.crt
    Optional:→false
    SecretName:→extra
    Optional:→true
    DownwardAPI:→true
   pod:
    Type:→DownwardAPI (a volume populated by information about the pod)
    Items:
      metadata.labels -> labels
      limits.cpu -> cpu
   claim:
    Type:→PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)
    ClaimName:→data
    ReadOnly:→false
   driver:
    Type:→CSI (a Container Storage Interface (CSI) volume source)
    Driver:→csi.example.com
    FSType:→
    ReadOnly:→false
    VolumeAttributes:→    size=1
        →    zone=a
   work:
    Type:→EphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)
    StorageClass:→fast
    Volume:→
    Labels:→    a=1
        →    b=2
    Annotations:→    <none>
    Capacity:→
    Access Modes:→
    VolumeMode:→Block
    DataSource:
      Kind:→PersistentVolumeClaim
      Name:→seed
   model:
    Type:→Image (a container image or OCI artifact)
    Reference:→registry.example.com/model:1
    PullPolicy:→IfNotPresent
   disk:
    Type:→ISCSI (an ISCSI Disk resource that is attached to a kubelet's host machine and then exposed to the pod)
    TargetPortal:→10.0.0.1:3260
    IQN:→iqn.2001-04.com.example
    Lun:→0
    ISCSIInterface→
    FSType:→
    ReadOnly:→false
    Portals:→[a b]
    DiscoveryCHAPAuth:→false
    SessionCHAPAuth:→false
    SecretRef:→&LocalObjectReference{Name:chap,}
    InitiatorName:→<none>
   channel:
    Type:→FC (a Fibre Channel disk)
    TargetWWNs:→50060e801049cfd1, 50060e801049cfd2
    LUN:→0
    FSType:→
    ReadOnly:→false
   flex:
    Type:→FlexVolume (a generic volume resource that is provisioned/attached using an exec based plugin)
    Driver:→example/lvm
    FSType:→
    SecretRef:→nil
    ReadOnly:→false
    Options:→map[fs:xfs size:1]
   future:
  <unknown>
  Topology Spread Constraints:→host:ScheduleAnyway when max skew 2 is exceeded
  →zone:DoNotSchedule when max skew 1 is exceeded for selector app=agent,!old,tier in (a,b)
  Priority Class Name:→system-node-critical
  Node-Selectors:→disk=ssd
→kubernetes.io/os=linux
  Tolerations:→op=Exists
→dedicated=logs:NoSchedule
→node.kubernetes.io/unreachable:NoExecute op=Exists for 300s
  SchedulingGroup:
  PodGroupName:→agents
"##;

fn rich() -> Value {
    serde_json::from_str(RICH).expect("the rich template is JSON")
}

/// The description without the empty line below it, its tabs made visible.
fn described(template: &Value) -> String {
    let text = pod_template(template);
    let text = text.strip_suffix('\n').expect("an empty last line");
    text.replace('\t', "→")
}

#[test]
fn a_template_with_nearly_everything_reads_as_in_kubectl() {
    assert_eq!(described(&rich()), RICH_TEXT);
}

#[test]
fn one_container_and_nothing_else() {
    let template = json!({"spec": {"containers": [{"name": "main", "image": "nginx"}]}});
    let text = [
        "Pod Template:\n",
        "  Labels:→<none>\n",
        "  Containers:\n",
        "   main:\n",
        "    Image:→nginx\n",
        "    Port:→<none>\n",
        "    Host Port:→<none>\n",
        "    Environment:→<none>\n",
        "    Mounts:→<none>\n",
        "  Volumes:→<none>\n",
        "  Node-Selectors:→<none>\n",
        "  Tolerations:→<none>\n",
    ];
    assert_eq!(described(&template), text.concat());
}

#[test]
fn an_empty_template_has_no_containers() {
    let text = [
        "Pod Template:\n",
        "  Labels:→<none>\n",
        "  Containers: <none>\n",
        "  Volumes:→<none>\n",
        "  Node-Selectors:→<none>\n",
        "  Tolerations:→<none>\n",
    ];
    assert_eq!(described(&json!({})), text.concat());
}

#[test]
fn long_annotations_and_attributes_are_cut() {
    let template = json!({
        "metadata": {"annotations": {
            "fits": "y".repeat(134),
            "long": "x".repeat(200),
            "lines": format!("a\n{}\n\n", "z".repeat(139)),
        }},
        "spec": {"volumes": [{"name": "driver", "csi": {"volumeAttributes": {
            "cut": "w".repeat(150),
            "wide": "é".repeat(100),
        }}}]},
    });
    let text = pod_template(&template);
    let x = "x".repeat(138);
    let y = "y".repeat(134);
    let z = "z".repeat(138);
    let w = "w".repeat(136);
    let accents = "é".repeat(67);
    for part in [
        format!("  Annotations:\tfits: {y}\n\tlines:\n\t  a\n\t  {z}...\n\t  \n\tlong:\n\t  {x}...\n"),
        format!("VolumeAttributes:\t    cut={w}...\n        \t    wide={accents}...\n"),
    ] {
        assert!(text.contains(&part), "{part}\nis not in\n{text}");
    }
}

#[test]
fn every_line_of_an_argument_is_indented_also_the_last_empty_one() {
    let container = json!({"name": "main", "command": ["a\n", "", "b"]});
    let text = pod_template(&json!({"spec": {"containers": [container]}}));
    assert!(text.contains("    Command:\n      a\n      \n      \n      b\n    Environment"));
}

#[test]
fn equal_toleration_keys_keep_their_order() {
    let tolerations = json!([
        {"key": "b", "effect": "NoSchedule"},
        {"key": "a", "operator": "Exists", "value": "x"},
        {"key": "b", "effect": "NoExecute", "tolerationSeconds": 0},
        {"operator": "Exists", "effect": "NoExecute"},
    ]);
    let text = described(&json!({"spec": {"tolerations": tolerations}}));
    let expected = "  Tolerations:→:NoExecute op=Exists\n→a=x\n→b:NoSchedule\n→b:NoExecute for 0s\n";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn an_invalid_label_selector_is_an_error() {
    for (selector, shown) in [
        (json!({}), "<none>"),
        (json!({"matchLabels": {"example.com/a": ""}}), "example.com/a="),
        (json!({"matchLabels": {"Example.com/a": "x"}}), "<error>"),
        (json!({"matchLabels": {"a": "-x"}}), "<error>"),
        (json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), "a"),
        (json!({"matchExpressions": [{"key": "a", "operator": "In"}]}), "<error>"),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["c", "b"]}]}),
            "a notin (b,c)",
        ),
        (json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}), "<error>"),
    ] {
        let constraints = json!([{"topologyKey": "zone", "labelSelector": selector}]);
        let text = pod_template(&json!({"spec": {"topologySpreadConstraints": constraints}}));
        let end = format!(" for selector {shown}\n");
        assert!(text.contains(&end), "{end:?} is not in\n{text}");
    }
}

#[test]
fn quantities_are_divided_exactly_and_rounded_up() {
    for (resource, stored, divisor, shown) in [
        ("limits.cpu", "7m", "1m", "7"),
        ("limits.cpu", "100n", "1m", "1"),
        ("limits.cpu", "1500m", "1", "2"),
        ("requests.cpu", "0", "1", "0"),
        ("limits.cpu", "0", "1", "node allocatable"),
        ("limits.memory", "1Gi", "1Mi", "1024"),
        ("limits.memory", "1G", "1Mi", "954"),
        ("limits.hugepages-2Mi", "4Mi", "1k", "4195"),
        ("limits.example.com/gpu", "4", "1", ""),
        ("limits.cpu", "nonsense", "-1m", "node allocatable"),
    ] {
        let (list, name) = resource.split_once('.').expect("a list and a name");
        let reference = json!({"resource": resource, "divisor": divisor});
        let container = json!({
            "resources": {list: {name: stored}},
            "env": [{"name": "X", "valueFrom": {"resourceFieldRef": reference}}],
        });
        let text = described(&json!({"spec": {"containers": [container]}}));
        let line = format!("      X:→{shown} ({resource})\n");
        assert!(text.contains(&line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn what_kubectl_dereferences_blindly_may_be_missing() {
    let template = json!({"spec": {
        "containers": [{
            "livenessProbe": {"grpc": {"port": 1}},
            "securityContext": {"seccompProfile": {"type": "Localhost"}},
        }],
        "volumes": [
            {"azureDisk": {}},
            {"projected": {"sources": [{"serviceAccountToken": {}}]}},
        ],
        "schedulingGroup": {},
    }});
    let text = described(&template);
    for line in [
        "Liveness:→grpc <pod>:1  delay=0s",
        "LocalhostProfile:→\n",
        "    Kind: →\n    FSType:→\n    CachingMode:→\n    ReadOnly:→false\n",
        "TokenExpirationSeconds:→0\n",
        "PodGroupName:→\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
}

/// The JSON pointers of everything below `value`.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<_> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, child)| (key.replace('~', "~0").replace('/', "~1"), child)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, child)| (index.to_string(), child)).collect()
        }
        _ => return,
    };
    for (key, child) in children {
        let place = format!("{at}/{key}");
        found.push(place.clone());
        places(child, &place, found);
    }
}

fn replaced(template: &Value, place: &str, with: Value) -> Value {
    let mut template = template.clone();
    *template.pointer_mut(place).expect("a place in the template") = with;
    template
}

#[test]
fn a_wrong_type_counts_as_absent_wherever_it_stands() {
    let template = rich();
    let mut all = Vec::new();
    places(&template, "", &mut all);
    assert!(all.len() > 250, "{}", all.len());
    for place in all {
        let absent = pod_template(&replaced(&template, &place, Value::Null));
        let wrong = match template.pointer(&place).expect("a place") {
            Value::Object(_) | Value::Array(_) => json!("text"),
            _ => json!([{"name": {}}, null, 1e300]),
        };
        let text = pod_template(&replaced(&template, &place, wrong));
        assert_eq!(text, absent, "{place}");
        for odd in [json!(true), json!(u64::MAX), json!(""), json!({})] {
            let text = pod_template(&replaced(&template, &place, odd));
            assert!(text.starts_with("Pod Template:\n") && text.ends_with("\n\n"));
        }
    }
    for nothing in [json!(null), json!([]), json!("x"), json!(0)] {
        assert_eq!(pod_template(&nothing), pod_template(&json!({})));
    }
}

#[test]
fn no_value_can_forge_a_line() {
    let forged = "x\r\u{1b}[2K\u{202e}\t\n  Volumes:\t<none>";
    let template = rich();
    let mut all = Vec::new();
    places(&template, "", &mut all);
    all.retain(|place| template.pointer(place).is_some_and(Value::is_string));
    for place in all {
        // Of these kubectl lays out the lines, each indented below its title.
        let laid_out = ["/args/", "/command/", "/annotations/", "/value"]
            .iter()
            .any(|field| place.contains(field) && !place.contains("exec"));
        let text = pod_template(&replaced(&template, &place, json!(forged)));
        let harmless = pod_template(&replaced(&template, &place, json!("x")));
        assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{place}");
        assert!(!text.contains('\u{202e}'), "{place}");
        assert_eq!(text.matches("\n  Volumes:").count(), 1, "{place}");
        let lines = |text: &str| text.lines().count();
        assert!(laid_out || lines(&text) == lines(&harmless), "{place}\n{text}");
    }
}

#[test]
fn keys_are_escaped_like_values() {
    let key = "a\u{1b}\n  b";
    let template = json!({
        "metadata": {"labels": {key: "1"}, "annotations": {key: "2"}},
        "spec": {
            "nodeSelector": {key: "3"},
            "containers": [{"resources": {"limits": {key: "4"}}}],
            "volumes": [
                {"csi": {"volumeAttributes": {key: "5"}}},
                {"flexVolume": {"options": {key: "6"}}},
            ],
        },
    });
    let text = pod_template(&template);
    let shown = r"a\u{1b}\n  b";
    for line in [
        format!("  Labels:\t{shown}=1\n"),
        format!("  Annotations:\t{shown}: 2\n"),
        format!("  Node-Selectors:\t{shown}=3\n"),
        format!("      {shown}:\t4\n"),
        format!("    {shown}=5\n"),
        format!("map[{shown}:6]\n"),
    ] {
        assert!(text.contains(&line), "{line:?} is not in\n{text}");
    }
}
