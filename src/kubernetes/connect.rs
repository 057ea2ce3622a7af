//! How a client to the API server is made.

use std::{error::Error as _, path::Path, time::Duration};

use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the kubeconfig (--kubeconfig, KUBECONFIG) can't be used")]
    Kubeconfig(#[source] KubeconfigError),
    /// Without the parser's words, which repeat the lines around the place: a token may stand there.
    #[error("the kubeconfig (--kubeconfig, KUBECONFIG) is not one: line {line}, column {column}")]
    Malformed { line: u64, column: u64 },
    #[error("no cluster: there is neither an in-cluster account nor a kubeconfig (--kubeconfig, KUBECONFIG)")]
    Infer(#[source] InferConfigError),
    #[error("the in-cluster account can't be used")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("the client can't be made")]
    Client(#[from] kube::Error),
}

impl ConnectError {
    fn malformed(error: &KubeconfigError) -> Option<Self> {
        let KubeconfigError::Parse(error) = error else { return None };
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        Some(Self::Malformed { line, column })
    }
}

impl From<KubeconfigError> for ConnectError {
    fn from(error: KubeconfigError) -> Self {
        Self::malformed(&error).unwrap_or(Self::Kubeconfig(error))
    }
}

impl From<InferConfigError> for ConnectError {
    fn from(error: InferConfigError) -> Self {
        let kubeconfig = error.source().and_then(|source| source.downcast_ref());
        kubeconfig.and_then(Self::malformed).unwrap_or(Self::Infer(error))
    }
}

/// Makes a client from `kubeconfig`, else from the in-cluster account where there is one, else from
/// the usual kubeconfig chain (`KUBECONFIG`, `~/.kube/config`).
///
/// # Errors
/// What is missing or can't be read. Nothing is sent yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<kube::Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => kube::Config::incluster()?,
        None => kube::Config::infer().await?,
    };
    // kube's own retry re-sends a PATCH after a 504, which may have been carried out.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(kube::Client::try_from(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_kubeconfig_keeps_its_token_to_itself() {
        let text = "apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user:\n    token: S3CRET\n   bad: x\n";
        let error: ConnectError = Kubeconfig::from_yaml(text).unwrap_err().into();
        let said = crate::telemetry::causes(&error).to_string();
        assert!(said.contains("line ") && !said.contains("S3CRET"), "{said}");
    }
}
