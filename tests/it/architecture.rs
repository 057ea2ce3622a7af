//! The arrows between the rooms of `src/`: in a single crate nothing else holds them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each room and the rooms that it may name. `main`, `lib` and `server` wire them all.
const ARROWS: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("telemetry", &["domain"]),
    ("kubernetes", &["domain", "telemetry"]),
    ("audit", &["domain", "telemetry"]),
    ("auth", &["domain", "kubernetes", "telemetry"]),
    ("rollbacks", &["audit", "auth", "domain", "failpoint", "kubernetes", "telemetry"]),
    ("http", &["audit", "auth", "domain", "kubernetes", "rollbacks", "telemetry"]),
    ("config", &["audit", "domain", "verifier"]),
    ("sandbox", &[]),
    ("failpoint", &[]),
    // What it verifies was written by code that it must not share.
    ("verifier", &[]),
];

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.clone(), code(&fs::read_to_string(&path).unwrap())));
        }
    }
    found
}

/// The text without comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root()).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The rooms that a source names: `crate::room`, also inside `use crate::{…}`.
fn named(source: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (index, _) in source.match_indices("crate::") {
        let rest = &source[index + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => rooms.push(word(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut first = true;
                for (index, character) in list.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => first = true,
                        character if first && character.is_alphabetic() && depth == 0 => {
                            rooms.push(word(&list[index..]));
                            first = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

fn word(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

#[test]
fn rooms_know_only_whom_they_may_know() {
    for (path, source) in sources(&root()) {
        let room = room(&path);
        if matches!(room.as_str(), "main" | "lib" | "server") {
            continue;
        }
        let (_, allowed) =
            ARROWS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("unknown room {room}"));
        for named in named(&source) {
            let known = named == room || allowed.contains(&named.as_str());
            assert!(known, "{} names crate::{named}, which {room} may not know", path.display());
        }
    }
}

#[test]
fn the_test_of_the_arrows_sees_arrows() {
    let source = "use crate::{\n audit::{Store, x},\n domain::key::Key,\n};\nfn f() { crate::http::g() }";
    assert_eq!(named(source), ["audit", "domain", "http"]);
}

#[test]
fn the_domain_is_pure() {
    let impure = [
        "tokio",
        "async fn",
        "std::fs",
        "std::net",
        "std::env",
        "Instant",
        "SystemTime",
        "Timestamp::now",
        "tracing",
        "sqlx",
        "http::",
        "kube::",
        "println!",
    ];
    for (path, source) in sources(&root().join("domain")) {
        for word in impure {
            assert!(!source.contains(word), "{} holds {word}", path.display());
        }
    }
}

#[test]
fn only_one_room_names_kube_and_only_one_knows_statuses() {
    for (path, source) in sources(&root()) {
        let room = room(&path);
        let kube = source.replace("crate::kubernetes", "").contains("kube::");
        assert!(!kube || matches!(room.as_str(), "kubernetes" | "server"), "{} names kube::", path.display());
        let status = source.contains("StatusCode");
        // The sandbox answers as the API server does.
        let may = matches!(room.as_str(), "http" | "sandbox");
        assert!(!status || may, "{} knows HTTP statuses", path.display());
    }
}

#[test]
fn a_grant_comes_from_the_review_and_two_named_exceptions() {
    // Who may say each of these: the fields are private, so that there is no other way to a Grant.
    let ways: [(&str, &[&str]); 4] = [
        ("Grant::reviewed", &["kubernetes/review.rs"]),
        ("Grant::unreviewed", &["auth/mod.rs"]),
        ("Grant::recorded", &["rollbacks/mod.rs", "rollbacks/ownership.rs"]),
        ("Grant {", &["kubernetes/grant.rs"]),
    ];
    let sources = sources(&root());
    for (way, places) in ways {
        for (path, source) in &sources {
            let allowed = places.iter().any(|place| path.ends_with(place));
            assert!(allowed || !source.contains(way), "{} says {way}", path.display());
        }
        let used =
            |place: &&str| sources.iter().any(|(path, source)| path.ends_with(place) && source.contains(way));
        assert!(places.iter().all(used), "nobody says {way}");
    }
    // Every write takes one.
    let (_, live) = sources.iter().find(|(path, _)| path.ends_with("kubernetes/live.rs")).unwrap();
    for write in live.split("async fn ").filter(|body| body.contains(".patch(")) {
        assert!(write.contains("grant: &Grant"), "a write without a Grant: {write}");
    }
}

/// Points at which a test build dies.
fn fail_points() -> Vec<String> {
    let mut points = Vec::new();
    for (_, source) in sources(&root()) {
        for call in ["fail_point!(\"", "fail_during!(\""] {
            points.extend(source.split(call).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    points
}

#[test]
fn the_crash_harness_comes_to_every_fail_point_and_its_model_tells_of_it() {
    let crash = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash");
    let harness = fs::read_to_string(crash.join("harness/killer.rs")).unwrap();
    let model = fs::read_to_string(crash.join("MODEL.md")).unwrap();
    assert!(fail_points().len() > 10);
    for point in fail_points() {
        assert!(harness.contains(&format!("\"{point}\"")), "the harness does not know {point}");
        assert!(model.contains(&format!("`{point}`")), "the model does not tell of {point}");
    }
}

#[test]
#[cfg(not(feature = "fail-points"))]
fn what_is_shipped_has_no_fail_points() {
    let binary = fs::read(env!("CARGO_BIN_EXE_rollbackd")).unwrap();
    let holds = |text: &str| binary.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("ROLLBACKD_LISTEN"));
    assert!(!holds("ROLLBACKD_FAIL_POINT") && !holds("settling-outdated"));
}

#[test]
fn who_checks_a_history_shares_no_code_with_who_made_it() {
    let crash = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash"));
    assert!(crash.len() > 10);
    for (name, source) in crash {
        assert!(!source.contains("rollbackd::"), "{name:?} uses rollbackd's code");
    }
}
