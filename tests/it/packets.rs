//! Real connections through Services of policy Cluster, in both families.
