//! The containers and init containers of a pod template.

use serde_json::Value;

use super::{Page, fields::Fields, quantity};
use crate::domain::text::escape;

/// `describeContainers`.
pub(super) fn describe(page: &mut Page, title: &str, containers: &[Fields]) {
    let none = if containers.is_empty() { " <none>" } else { "" };
    page.line(0, format_args!("  {title}:{none}"));
    for container in containers {
        basics(page, *container);
        command(page, "Command", &container.raw_texts("command"));
        command(page, "Args", &container.raw_texts("args"));
        let resources = container.part("resources");
        quantities(page, "Limits", resources.part("limits"));
        quantities(page, "Requests", resources.part("requests"));
        for (title, field) in
            [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
        {
            if let Some(handler) = container.object(field) {
                page.line(2, format_args!("{title}:\t{}", probe(handler)));
            }
        }
        environment_sources(page, &container.list("envFrom"));
        environment(page, &container.list("env"), resources);
        mounts(page, *container);
    }
}

/// `describeContainerBasicInfo`.
fn basics(page: &mut Page, container: Fields) {
    page.line(1, format_args!(" {}:", container.text("name")));
    page.line(2, format_args!("Image:\t{}", container.text("image")));
    for (title, field) in [("Port", "containerPort"), ("Host Port", "hostPort")] {
        let ports = ports(&container.list("ports"), field);
        // Two ports, or one whose name has a comma: kubectl looks at the text as well.
        let plural = if ports.contains(',') { "s" } else { "" };
        page.line(2, format_args!("{title}{plural}:\t{ports}"));
    }
    let security = container.part("securityContext");
    if let Some(profile) = security.object("seccompProfile") {
        let kind = profile.text("type");
        page.line(2, format_args!("SeccompProfile:\t{kind}"));
        if kind == "Localhost" {
            let path = profile.text("localhostProfile");
            page.line(3, format_args!("LocalhostProfile:\t{path}"));
        }
    }
}

fn ports(ports: &[Fields], field: &str) -> String {
    if ports.is_empty() {
        return "<none>".to_owned();
    }
    let ports: Vec<_> = ports
        .iter()
        .map(|port| {
            let name = match port.text("name") {
                name if name.is_empty() => String::new(),
                name => format!(" ({name})"),
            };
            format!("{}/{}{name}", port.number(field), port.text("protocol"))
        })
        .collect();
    ports.join(", ")
}

/// `describeContainerCommand`: an argument of several lines takes several, told apart from several
/// arguments by nothing.
fn command(page: &mut Page, title: &str, arguments: &[&str]) {
    if arguments.is_empty() {
        return;
    }
    page.line(2, format_args!("{title}:"));
    for line in arguments.iter().flat_map(|argument| argument.split('\n')) {
        page.line(3, escape(line));
    }
}

/// `describeResources`.
fn quantities(page: &mut Page, title: &str, resources: Fields) {
    let resources = resources.entries();
    if resources.is_empty() {
        return;
    }
    page.line(2, format_args!("{title}:"));
    for (name, value) in resources {
        page.line(3, format_args!("{}:\t{}", escape(name), quantity::show(value)));
    }
}

/// `DescribeProbe`.
fn probe(probe: Fields) -> String {
    let handler = if let Some(exec) = probe.object("exec") {
        format!("exec [{}]", exec.texts("command").join(" "))
    } else if let Some(request) = probe.object("httpGet") {
        format!("http-get {}", url(request))
    } else if let Some(socket) = probe.object("tcpSocket") {
        let port = socket.raw_port("port");
        format!("tcp-socket {}:{}", socket.text("host"), escape(&port))
    } else if let Some(grpc) = probe.object("grpc") {
        format!("grpc <pod>:{} {}", grpc.number("port"), grpc.text("service"))
    } else {
        "unknown".to_owned()
    };
    format!(
        "{handler} delay={}s timeout={}s period={}s successThreshold={} failureThreshold={}",
        probe.number("initialDelaySeconds"),
        probe.number("timeoutSeconds"),
        probe.number("periodSeconds"),
        probe.number("successThreshold"),
        probe.number("failureThreshold"),
    )
}

/// The address of an HTTP probe as Go's `url.URL.String` writes it. The whole `path` is a URL path
/// to it, so a query's `?` comes out as `%3F`.
fn url(request: Fields) -> String {
    let mut url = request.text("scheme").to_lowercase();
    if !url.is_empty() {
        url.push(':');
    }
    url.push_str("//");
    let port = request.raw_port("port");
    let host = match request.raw_text("host") {
        host if host.contains(':') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    };
    percent_encode(&mut url, &host, b"!\"$&'()*+,-.:;<=>[]_~");
    let path = request.raw_text("path");
    if !path.is_empty() && !path.starts_with('/') {
        url.push('/');
    }
    match path {
        "*" => url.push('*'),
        _ => percent_encode(&mut url, path, b"$&+,-./:;=@_~"),
    }
    url
}

fn percent_encode(url: &mut String, text: &str, kept: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// `describeContainerEnvFrom`.
fn environment_sources(page: &mut Page, sources: &[Fields]) {
    if sources.is_empty() {
        return;
    }
    page.line(2, "Environment Variables from:");
    for source in sources {
        let (kind, object) = if let Some(map) = source.object("configMapRef") {
            ("ConfigMap", map)
        } else if let Some(secret) = source.object("secretRef") {
            ("Secret", secret)
        } else {
            ("", Fields::default())
        };
        let prefix = match source.text("prefix") {
            prefix if prefix.is_empty() => String::new(),
            prefix => format!(" with prefix '{prefix}'"),
        };
        page.line(
            3,
            format_args!("{}\t{kind}{prefix}\tOptional: {}", object.text("name"), object.flag("optional")),
        );
    }
}

/// `describeContainerEnvVars`. A variable from a file (`fileKeyRef`), or from a source this
/// version of kubectl does not know, is not shown at all.
fn environment(page: &mut Page, variables: &[Fields], resources: Fields) {
    let none = if variables.is_empty() { "\t<none>" } else { "" };
    page.line(2, format_args!("Environment:{none}"));
    for variable in variables {
        let name = variable.text("name");
        let Some(source) = variable.object("valueFrom") else {
            for (index, line) in variable.raw_text("value").split('\n').enumerate() {
                let label = if index == 0 { format!("{name}:") } else { String::new() };
                page.line(3, format_args!("{label}\t{}", escape(line)));
            }
            continue;
        };
        let value = if let Some(field) = source.object("fieldRef") {
            // The value is the pod's, and a template has none.
            format!(" ({}:{})", field.text("apiVersion"), field.text("fieldPath"))
        } else if let Some(resource) = source.object("resourceFieldRef") {
            format!("{} ({})", resource_value(resource, resources), resource.text("resource"))
        } else if let Some(secret) = source.object("secretKeyRef") {
            format!(
                "<set to the key '{}' in secret '{}'>\tOptional: {}",
                secret.text("key"),
                secret.text("name"),
                secret.flag("optional")
            )
        } else if let Some(map) = source.object("configMapKeyRef") {
            format!(
                "<set to the key '{}' of config map '{}'>\tOptional: {}",
                map.text("key"),
                map.text("name"),
                map.flag("optional")
            )
        } else {
            continue;
        };
        page.line(3, format_args!("{name}:\t{value}"));
    }
}

/// `ExtractContainerResourceValue` (pkg/util/resource): the container's own quantity in units of
/// the divisor, rounded up. Without a limit, the container may use the node.
fn resource_value(reference: Fields, resources: Fields) -> String {
    let resource = reference.raw_text("resource");
    let Some((list, name)) = resource.split_once('.') else {
        return String::new();
    };
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known || !matches!(list, "limits" | "requests") {
        return String::new();
    }
    let shift = if name == "cpu" { 3 } else { 0 };
    let one = Value::from("1");
    let divisor = match reference.get("divisor") {
        Some(divisor) if quantity::amount(divisor, 9) != 0 => divisor,
        _ => &one,
    };
    let available = resources.part(list).get(name).map_or(0, |value| quantity::amount(value, shift));
    match (available as f64 / quantity::amount(divisor, shift) as f64).ceil() as i64 {
        0 if matches!(resource, "limits.cpu" | "limits.memory") => "node allocatable".to_owned(),
        units => units.to_string(),
    }
}

/// `describeContainerVolumes`.
fn mounts(page: &mut Page, container: Fields) {
    let mut mounts = container.list("volumeMounts");
    mounts.sort_by_key(|mount| mount.raw_text("mountPath"));
    let none = if mounts.is_empty() { "\t<none>" } else { "" };
    page.line(2, format_args!("Mounts:{none}"));
    for mount in mounts {
        let access = if mount.flag("readOnly") { "ro" } else { "rw" };
        let path = match mount.raw_text("subPath") {
            "" => String::new(),
            path => format!(",path=\"{}\"", escape(&path.replace('\\', r"\\").replace('"', "\\\""))),
        };
        page.line(
            3,
            format_args!("{} from {} ({access}{path})", mount.text("mountPath"), mount.text("name")),
        );
    }
    let mut devices = container.list("volumeDevices");
    if devices.is_empty() {
        return;
    }
    devices.sort_by_key(|device| device.raw_text("devicePath"));
    // kubectl says `<none>` here if there are no mounts.
    page.line(2, format_args!("Devices:{none}"));
    for device in devices {
        let path = device.text("devicePath");
        page.line(3, format_args!("{path} from {}", device.text("name")));
    }
}
