//! How a client to the API server is made.

use std::{path::Path, time::Duration};

use kube::config::{KubeConfigOptions, Kubeconfig};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the kubeconfig (--kubeconfig, KUBECONFIG) can't be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("no cluster: there is neither an in-cluster account nor a kubeconfig (--kubeconfig, KUBECONFIG)")]
    Infer(#[from] kube::config::InferConfigError),
    #[error("the in-cluster account can't be used")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("the client can't be made")]
    Client(#[from] kube::Error),
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
