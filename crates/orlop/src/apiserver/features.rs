//! The feature gates that a v1.36 kube-apiserver knows by name.
//!
//! Orlop has no switches: what is on by default upstream is how it behaves. A known gate is taken, and when it is set
//! to something else than that, the log says so.

/// How far a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default.
    Alpha,
    /// On by default.
    Beta,
    /// Beta, but off by default.
    BetaOff,
    /// On; upstream refuses to turn it off.
    Locked,
}

/// Gates by stage, in upstream's alphabetical order.
const GATES: &[(Stage, &str)] = &[
    (
        Stage::Alpha,
        "AllAlpha AllowUnsafeMalformedObjectDeletion CPUManagerPolicyAlphaOptions \
         CRDObservedGenerationTracking CSIVolumeHealth CrossNamespaceVolumeDataSource CustomCPUCFSQuotaPeriod \
         DRADeviceTaintRules DRANodeAllocatableResources DRAResourceClaimGranularStatusAuthorization \
         DRAWorkloadResourceClaims EventedPLEG GangScheduling GenericWorkload HPAScaleToZero \
         InPlacePodLevelResourcesVerticalScaling InPlacePodVerticalScalingExclusiveCPUs \
         InPlacePodVerticalScalingExclusiveMemory InPlacePodVerticalScalingInitContainers \
         KubeletInUserNamespace LoggingAlphaOptions ManifestBasedAdmissionControlConfig MemoryQoS \
         MutableSchedulingDirectivesForSuspendedJobs PVCUnusedSinceTime PersistentVolumeClaimUnusedSinceTime \
         PodAndContainerStatsFromCRI PodGroupScheduling PodLogsQuerySplitStreams QOSReserved \
         ReduceDefaultCrashLoopBackOffDecay RestartAllContainersOnContainerExits RuntimeClassInImageCriApi \
         ShardedListAndWatch StorageCapacityScoring StorageVersionAPI TaintTolerationComparisonOperators \
         TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions \
         UnknownVersionInteroperabilityProxy UserNamespacesHostNetworkSupport WindowsCPUAndMemoryAffinity \
         WindowsGracefulNodeShutdown WorkloadAwarePreemption WorkloadWithJob",
    ),
    (
        Stage::BetaOff,
        "AllBeta CBORServingAndStorage ClientsAllowCBOR ClientsPreferCBOR ClusterTrustBundle \
         ClusterTrustBundleProjection ContainerStopSignals CoordinatedLeaderElection \
         DeploymentReplicaSetTerminatingReplicas GitRepoVolumeDriver InOrderInformers \
         KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages \
         LocalStorageCapacityIsolationFSQuotaMonitoring NodeLogQuery PodCertificateRequest SELinuxMount \
         StorageVersionMigrator WatchCacheInitializationPostStartHook WatchFromStorageWithoutResourceVersion",
    ),
    (
        Stage::Beta,
        "APIResponseCompression APIServerIdentity APIServingWithRoutine AggregatedDiscoveryRemoveBetaType \
         AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests \
         AllowOverwriteTerminationGracePeriodSeconds AllowParsingUserUIDFromCertAuth \
         AllowServiceLBStatusOnNonLB AnyVolumeDataSource AtomicFIFO \
         AuthorizePodWebsocketUpgradeCreatePermission BtreeWatchCache CPUManagerPolicyBetaOptions \
         CPUManagerPolicyOptions CSIMigrationPortworx CSIServiceAccountTokenSecrets \
         ChangeContainerStatusOnKubeletRestart ClearingNominatedNodeNameAfterBinding ComponentFlagz \
         ComponentStatusz ConcurrentWatchObjectDecode ConstrainedImpersonation ContainerCheckpoint \
         ContainerRestartRules ContextualLogging DRAAdminAccess DRAConsumableCapacity \
         DRADeviceBindingConditions DRADeviceTaints DRAExtendedResource DRAPartitionableDevices \
         DRAPrioritizedList DRAResourceClaimDeviceStatus DRASchedulerFilterTimeout DeclarativeValidation \
         DeclarativeValidationBeta DeclarativeValidationTakeover DefaultHostNetworkHostPortsInPodTemplates \
         DetectCacheInconsistency DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion EnvFiles \
         ExternalServiceAccountTokenSigner GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority \
         HPAConfigurableTolerance HostnameOverride ImageMaximumGCAge ImageVolume ImageVolumeWithDigest \
         InformerResourceVersion JobManagedBy JobPodReplacementPolicy KMSv1 KubeletFineGrainedAuthz \
         KubeletPSI KubeletPodResourcesDynamicResources KubeletPodResourcesGet \
         KubeletRegistrationGetOnExistsOnly KubeletSeparateDiskGC \
         KubeletServiceAccountTokenForCredentialProviders KubeletTracing LegacySidecarContainers \
         ListFromCacheSnapshot LogarithmicScaleDown LoggingBetaOptions MatchLabelKeysInPodAffinity \
         MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge \
         MaxUnavailableStatefulSet MemoryManager MutableCSINodeAllocatableCount MutablePVNodeAffinity \
         MutablePodResourcesForSuspendedJobs MutatingAdmissionPolicy NodeDeclaredFeatures \
         NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching OrderedNamespaceDeletion \
         PDBUnhealthyPodEvictionPolicy PodDeletionCost PodIndexLabel PodLevelResources \
         PodLifecycleSleepActionAllowZero PodObservedGenerationTracking PodReadyToStartContainersCondition \
         PodTopologyLabelsAdmission PortForwardWebsockets PreferSameTrafficDistribution \
         PreventStaticPodAPIReferences ProcMountType RelaxedDNSSearchValidation RelaxedServiceNameValidation \
         ReloadKubeletClientCAFile ReloadKubeletServerCertificateFile RemoteRequestHeaderUID \
         ResilientWatchCacheInitialization ResourceHealthStatus RotateKubeletServerCertificate \
         SELinuxChangePolicy SELinuxMountReadWriteOncePod SchedulerAsyncAPICalls SchedulerAsyncPreemption \
         SchedulerPopFromBackoffQ SchedulerQueueingHints SeparateCacheWatchRPC \
         SeparateTaintEvictionController SizeBasedListCostEstimate SizeMemoryBackedVolumes \
         StatefulSetAutoDeletePVC StatefulSetSemanticRevisionComparison StorageNamespaceIndex \
         StorageVersionHash StrictIPCIDRValidation StructuredAuthenticationConfigurationEgressSelector \
         StructuredAuthenticationConfigurationJWKSMetrics SupplementalGroupsPolicy SystemdWatchdog \
         TokenRequestServiceAccountUIDValidation TopologyManagerPolicyBetaOptions \
         TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation UnlockWhileProcessingFIFO \
         UserNamespacesPodSecurityStandards UserNamespacesSupport VolumeLimitScaling WatchList \
         WatchListClient WinOverlay WindowsHostNetwork",
    ),
    (
        Stage::Locked,
        "APIServerTracing AdmissionWebhookMatchConditions AnonymousAuthConfigurableEndpoints AppArmor \
         AppArmorFields AuthorizeNodeWithSelectors AuthorizeWithSelectors CPUCFSQuotaPeriod \
         CRDValidationRatcheting ComponentSLIs ConsistentListFromCache CronJobsScheduledAnnotation \
         CustomResourceFieldSelectors DevicePluginCDIDevices DisableAllocatorDualWrite \
         DynamicResourceAllocation ElasticIndexedJob HonorPVReclaimPolicy InPlacePodVerticalScaling \
         InPlacePodVerticalScalingAllocatedStatus JobBackoffLimitPerIndex JobPodFailurePolicy \
         JobSuccessPolicy KubeProxyDrainingTerminatingNodes KubeletCgroupDriverFromCRI LoadBalancerIPMode \
         MultiCIDRServiceAllocator NFTablesProxyMode NodeInclusionPolicyInPodTopologySpread NodeSwap \
         PersistentVolumeLastPhaseTransitionTime PodHostIPs PodLifecycleSleepAction PodSchedulingReadiness \
         RecoverVolumeExpansionFailure RecursiveReadOnlyMounts RelaxedEnvironmentVariableValidation \
         RetryGenerateName ServiceAccountNodeAudienceRestriction ServiceAccountTokenJTI \
         ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation \
         ServiceAccountTokenPodNodeInfo ServiceTrafficDistribution SidecarContainers StatefulSetStartOrdinal \
         StrictCostEnforcementForVAP StrictCostEnforcementForWebhooks StructuredAuthenticationConfiguration \
         StructuredAuthorizationConfiguration TopologyAwareHints TopologyManagerPolicyOptions \
         ValidatingAdmissionPolicy VolumeAttributesClass WatchBookmark WinDSR \
         ZeroLimitedNominalConcurrencyShares",
    ),
];

/// The stage of a gate; `None` when there is no such gate.
pub fn stage(name: &str) -> Option<Stage> {
    GATES.iter().find(|(_, names)| names.split_whitespace().any(|gate| gate == name)).map(|(stage, _)| *stage)
}

/// Checks gates that were set; what would change something is logged.
///
/// # Errors
/// Upstream's texts about a gate that does not exist and about one that cannot be changed.
pub fn check<'a>(set: impl Iterator<Item = (&'a String, &'a bool)>) -> anyhow::Result<()> {
    for (name, value) in set {
        // Several components in one process are told apart by a prefix upstream.
        let gate = name.strip_prefix("kube:").unwrap_or(name);
        let default = match stage(gate) {
            None => anyhow::bail!("unrecognized feature gate: {gate}"),
            Some(Stage::Locked) if !value => {
                anyhow::bail!("cannot set feature gate {gate} to false, feature is locked to true")
            }
            Some(Stage::Locked | Stage::Beta) => true,
            Some(Stage::Alpha | Stage::BetaOff) => false,
        };
        if *value != default {
            tracing::warn!(gate, value, "the feature gate has no effect: Orlop behaves as with {default}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn gates() {
        let check = |name: &str, value: bool, expected: Option<&str>| {
            let result = super::check([(&name.to_string(), &value)].into_iter());
            assert_eq!(result.err().map(|error| error.to_string()).as_deref(), expected, "{name}={value}");
        };
        check("MutatingAdmissionPolicy", true, None);
        check("kube:WatchList", true, None);
        check("SidecarContainers", true, None);
        check(
            "SidecarContainers",
            false,
            Some("cannot set feature gate SidecarContainers to false, feature is locked to true"),
        );
        check("NoSuchGate", true, Some("unrecognized feature gate: NoSuchGate"));
    }

    #[test]
    fn every_gate_has_one_stage() {
        let mut all: Vec<&str> = GATES.iter().flat_map(|(_, names)| names.split_whitespace()).collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|name| name.bytes().all(|b| b.is_ascii_alphanumeric())));
    }
}
