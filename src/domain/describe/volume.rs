//! The volumes of a pod template.

use super::{LONGEST_ANNOTATION, Page, annotations, fields::Fields, labels, quantity, shorten};
use crate::domain::text::escape;

/// How a volume source of one type is shown (`printHostPathVolumeSource` and its siblings): its
/// field in a volume, what stands after `Type:`, and a line for each field worth showing.
type Source = (&'static str, &'static str, &'static [Detail]);

/// The label up to the tab, the field, and how Go prints the field's type.
type Detail = (&'static str, &'static str, Form);

enum Form {
    Text,
    /// A `*string` that is `<none>` when absent.
    TextOrNone,
    Number,
    /// An `*int32` that is `<none>` when absent.
    NumberOrNone,
    Flag,
    /// A `[]string` under `%v`.
    List,
    /// A `[]string` joined with commas.
    Joined,
    /// A `map[string]string` under `%v`.
    Map,
    /// A `*LocalObjectReference` under `%v`, which prints its generated `String`.
    Reference,
    /// A `*Quantity` that is `<unset>` unless positive.
    SizeLimit,
}

use Form::{Flag, Joined, List, Map, Number, NumberOrNone, Reference, SizeLimit, Text, TextOrNone};

const FS_TYPE: Detail = ("FSType:", "fsType", Text);
const OPTIONAL: Detail = ("Optional:", "optional", Flag);
const PARTITION: Detail = ("Partition:", "partition", Number);
const PATH: Detail = ("Path:", "path", Text);
const READ_ONLY: Detail = ("ReadOnly:", "readOnly", Flag);
const SECRET_REF: Detail = ("SecretRef:", "secretRef", Reference);
const VOLUME_ID: Detail = ("VolumeID:", "volumeID", Text);

/// The annotation that `GetPersistentVolumeClaimClass` (pkg/util/storage) puts before the field.
const STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// In the order of the `switch` in `describeVolumes`: of several sources in one volume the first
/// is shown. Irregular labels (`ISCSIInterface`, `Kind: `) are kubectl's.
#[rustfmt::skip]
const SOURCES: &[Source] = &[
    ("hostPath", "HostPath (bare host directory volume)", &[
        PATH, ("HostPathType:", "type", TextOrNone)
    ]),
    ("emptyDir", "EmptyDir (a temporary directory that shares a pod's lifetime)", &[
        ("Medium:", "medium", Text), ("SizeLimit:", "sizeLimit", SizeLimit)
    ]),
    ("gcePersistentDisk", "GCEPersistentDisk (a Persistent Disk resource in Google Compute Engine)", &[
        ("PDName:", "pdName", Text), FS_TYPE, PARTITION, READ_ONLY
    ]),
    ("awsElasticBlockStore", "AWSElasticBlockStore (a Persistent Disk resource in AWS)", &[
        VOLUME_ID, FS_TYPE, PARTITION, READ_ONLY
    ]),
    ("gitRepo", "GitRepo (a volume that is pulled from git when the pod is created)", &[
        ("Repository:", "repository", Text), ("Revision:", "revision", Text)
    ]),
    ("secret", "Secret (a volume populated by a Secret)", &[
        ("SecretName:", "secretName", Text), OPTIONAL
    ]),
    ("configMap", "ConfigMap (a volume populated by a ConfigMap)", &[
        ("Name:", "name", Text), OPTIONAL
    ]),
    ("nfs", "NFS (an NFS mount that lasts the lifetime of a pod)", &[
        ("Server:", "server", Text), PATH, READ_ONLY
    ]),
    ("iscsi", "ISCSI (an ISCSI Disk resource that is attached to a kubelet's host machine and then exposed to the pod)", &[
        ("TargetPortal:", "targetPortal", Text), ("IQN:", "iqn", Text), ("Lun:", "lun", Number),
        ("ISCSIInterface", "iscsiInterface", Text), FS_TYPE, READ_ONLY,
        ("Portals:", "portals", List), ("DiscoveryCHAPAuth:", "chapAuthDiscovery", Flag),
        ("SessionCHAPAuth:", "chapAuthSession", Flag), SECRET_REF,
        ("InitiatorName:", "initiatorName", TextOrNone)
    ]),
    ("glusterfs", "Glusterfs (a Glusterfs mount on the host that shares a pod's lifetime)", &[
        ("EndpointsName:", "endpoints", Text), PATH, READ_ONLY
    ]),
    ("persistentVolumeClaim", "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)", &[
        ("ClaimName:", "claimName", Text), READ_ONLY
    ]),
    ("ephemeral", "EphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)", &[]),
    ("rbd", "RBD (a Rados Block Device mount on the host that shares a pod's lifetime)", &[
        ("CephMonitors:", "monitors", List), ("RBDImage:", "image", Text), FS_TYPE,
        ("RBDPool:", "pool", Text), ("RadosUser:", "user", Text), ("Keyring:", "keyring", Text),
        SECRET_REF, READ_ONLY
    ]),
    ("quobyte", "Quobyte (a Quobyte mount on the host that shares a pod's lifetime)", &[
        ("Registry:", "registry", Text), ("Volume:", "volume", Text), READ_ONLY
    ]),
    ("downwardAPI", "DownwardAPI (a volume populated by information about the pod)", &[]),
    ("azureDisk", "AzureDisk (an Azure Data Disk mount on the host and bind mount to the pod)", &[
        ("DiskName:", "diskName", Text), ("DiskURI:", "diskURI", Text), ("Kind: ", "kind", Text),
        FS_TYPE, ("CachingMode:", "cachingMode", Text), READ_ONLY
    ]),
    ("vsphereVolume", "vSphereVolume (a Persistent Disk resource in vSphere)", &[
        ("VolumePath:", "volumePath", Text), FS_TYPE,
        ("StoragePolicyName:", "storagePolicyName", Text)
    ]),
    ("cinder", "Cinder (a Persistent Disk resource in OpenStack)", &[
        VOLUME_ID, FS_TYPE, READ_ONLY, SECRET_REF
    ]),
    ("photonPersistentDisk", "PhotonPersistentDisk (a Persistent Disk resource in photon platform)", &[
        ("PdID:", "pdID", Text), FS_TYPE
    ]),
    ("portworxVolume", "PortworxVolume (a Portworx Volume resource)", &[
        VOLUME_ID
    ]),
    ("scaleIO", "ScaleIO (a persistent volume backed by a block device in ScaleIO)", &[
        ("Gateway:", "gateway", Text), ("System:", "system", Text),
        ("Protection Domain:", "protectionDomain", Text), ("Storage Pool:", "storagePool", Text),
        ("Storage Mode:", "storageMode", Text), ("VolumeName:", "volumeName", Text), FS_TYPE,
        READ_ONLY
    ]),
    ("cephfs", "CephFS (a CephFS mount on the host that shares a pod's lifetime)", &[
        ("Monitors:", "monitors", List), PATH, ("User:", "user", Text),
        ("SecretFile:", "secretFile", Text), SECRET_REF, READ_ONLY
    ]),
    ("storageos", "StorageOS (a StorageOS Persistent Disk resource)", &[
        ("VolumeName:", "volumeName", Text), ("VolumeNamespace:", "volumeNamespace", Text),
        FS_TYPE, READ_ONLY
    ]),
    ("fc", "FC (a Fibre Channel disk)", &[
        ("TargetWWNs:", "targetWWNs", Joined), ("LUN:", "lun", NumberOrNone), FS_TYPE, READ_ONLY
    ]),
    ("azureFile", "AzureFile (an Azure File Service mount on the host and bind mount to the pod)", &[
        ("SecretName:", "secretName", Text), ("ShareName:", "shareName", Text), READ_ONLY
    ]),
    ("flexVolume", "FlexVolume (a generic volume resource that is provisioned/attached using an exec based plugin)", &[
        ("Driver:", "driver", Text), FS_TYPE, SECRET_REF, READ_ONLY, ("Options:", "options", Map)
    ]),
    ("flocker", "Flocker (a Flocker volume mounted by the Flocker agent)", &[
        ("DatasetName:", "datasetName", Text), ("DatasetUUID:", "datasetUUID", Text)
    ]),
    ("projected", "Projected (a volume that contains injected data from multiple sources)", &[]),
    ("csi", "CSI (a Container Storage Interface (CSI) volume source)", &[
        ("Driver:", "driver", Text), FS_TYPE, READ_ONLY
    ]),
    ("image", "Image (a container image or OCI artifact)", &[
        ("Reference:", "reference", Text), ("PullPolicy:", "pullPolicy", Text)
    ]),
];

/// `describeVolumes`.
pub(super) fn describe(page: &mut Page, volumes: &[Fields]) {
    if volumes.is_empty() {
        page.line(0, "  Volumes:\t<none>");
        return;
    }
    page.line(0, "  Volumes:");
    for volume in volumes {
        page.line(1, format_args!(" {}:", volume.text("name")));
        let found = SOURCES.iter().find_map(|source| Some((source, volume.object(source.0)?)));
        let Some(((field, kind, details), source)) = found else {
            page.line(1, "<unknown>");
            continue;
        };
        page.line(2, format_args!("Type:\t{kind}"));
        for (label, field, form) in *details {
            page.line(2, format_args!("{label}\t{}", form.show(source, field)));
        }
        match *field {
            "csi" => csi_attributes(page, &source.raw_pairs("volumeAttributes")),
            "downwardAPI" => downward_items(page, source),
            "ephemeral" => claim_template(page, source),
            "projected" => projected_sources(page, source),
            _ => {}
        }
    }
}

impl Form {
    fn show(&self, fields: Fields, name: &str) -> String {
        let none = || "<none>".to_owned();
        match self {
            Text => fields.text(name).into_owned(),
            TextOrNone => fields.optional_text(name).map_or_else(none, Into::into),
            Number => fields.number(name).to_string(),
            NumberOrNone => {
                let number = fields.optional_number(name);
                number.map_or_else(none, |number| number.to_string())
            }
            Flag => fields.flag(name).to_string(),
            List => format!("[{}]", fields.texts(name).join(" ")),
            Joined => fields.texts(name).join(", "),
            Map => {
                let pairs = fields.raw_pairs(name).into_iter();
                let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}:{value}")).collect();
                format!("map[{}]", escape(&pairs.join(" ")))
            }
            Reference => match fields.object(name) {
                Some(reference) => {
                    format!("&LocalObjectReference{{Name:{},}}", reference.text("name"))
                }
                None => "nil".to_owned(),
            },
            SizeLimit => match fields.get(name) {
                Some(limit) if quantity::amount(limit, 0) > 0 => quantity::show(limit),
                _ => "<unset>".to_owned(),
            },
        }
    }
}

/// `printProjectedVolumeSource`: cluster trust bundles and pod certificates are not shown.
fn projected_sources(page: &mut Page, projected: Fields) {
    for source in projected.list("sources") {
        let object = if let Some(secret) = source.object("secret") {
            page.line(2, format_args!("SecretName:\t{}", secret.text("name")));
            secret
        } else if source.object("downwardAPI").is_some() {
            page.line(2, "DownwardAPI:\ttrue");
            continue;
        } else if let Some(map) = source.object("configMap") {
            page.line(2, format_args!("ConfigMapName:\t{}", map.text("name")));
            map
        } else {
            if let Some(token) = source.object("serviceAccountToken") {
                let seconds = token.number("expirationSeconds");
                page.line(2, format_args!("TokenExpirationSeconds:\t{seconds}"));
            }
            continue;
        };
        page.line(2, format_args!("Optional:\t{}", object.flag("optional")));
    }
}

/// `printDownwardAPIVolumeSource`.
fn downward_items(page: &mut Page, downward: Fields) {
    page.line(2, "Items:");
    for item in downward.list("items") {
        let path = item.text("path");
        if let Some(field) = item.object("fieldRef") {
            page.line(3, format_args!("{} -> {path}", field.text("fieldPath")));
        }
        if let Some(resource) = item.object("resourceFieldRef") {
            page.line(3, format_args!("{} -> {path}", resource.text("resource")));
        }
    }
}

/// `printPersistentVolumeClaim` for a claim that does not exist yet: its capacity and access modes
/// come from a status it does not have, so the one is empty or 0 and the other always empty.
fn claim_template(page: &mut Page, ephemeral: Fields) {
    let Some(template) = ephemeral.object("volumeClaimTemplate") else {
        return;
    };
    let metadata = template.part("metadata");
    let spec = template.part("spec");
    let annotated = metadata.part("annotations");
    let class = match annotated.get(STORAGE_CLASS) {
        Some(_) => annotated.text(STORAGE_CLASS),
        None => spec.text("storageClassName"),
    };
    let volume = spec.text("volumeName");
    let capacity = if volume.is_empty() { "" } else { "0" };

    page.nesting = 2;
    page.line(0, format_args!("StorageClass:\t{class}"));
    page.line(0, format_args!("Volume:\t{volume}"));
    labels(page, "Labels", &metadata.raw_pairs("labels"));
    annotations(page, "Annotations", &metadata.raw_pairs("annotations"));
    page.line(0, format_args!("Capacity:\t{capacity}"));
    page.line(0, "Access Modes:\t");
    if let Some(mode) = spec.optional_text("volumeMode") {
        page.line(0, format_args!("VolumeMode:\t{mode}"));
    }
    if let Some(source) = spec.object("dataSource") {
        page.line(0, "DataSource:");
        if let Some(group) = source.optional_text("apiGroup") {
            page.line(1, format_args!("APIGroup:\t{group}"));
        }
        page.line(1, format_args!("Kind:\t{}", source.text("kind")));
        page.line(1, format_args!("Name:\t{}", source.text("name")));
    }
    page.nesting = 0;
}

/// `printCSIPersistentVolumeAttributesMultilineIndent`, which indents every piece of a line.
fn csi_attributes(page: &mut Page, attributes: &[(&str, &str)]) {
    page.put(2, "VolumeAttributes:\t");
    if attributes.is_empty() {
        page.line(0, "<none>");
    }
    for (index, (key, value)) in attributes.iter().enumerate() {
        if index > 0 {
            page.put(2, "");
            page.put(2, "\t");
        }
        page.line(2, shorten(&format!("{key}={value}"), LONGEST_ANNOTATION));
    }
}
