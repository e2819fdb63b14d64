"""Constants of FIA that are no setting of a node, and where the defaults of the settings come from.

None of the constants here changes a patch: they decide where statistics lie in memory, and when a
report warns. What does change a patch is a setting, which stands in the patch's provenance.

| setting | default | source |
|---|---|---|
| prompts | 5 | the paper: five contexts for a concept |
| steps, window | 50, 10 | the paper |
| cfg, seed | 7.5, 1244 | the released code |
| r1 | 0.05 | the paper's table 8 |
| r2, alpha | 0.01, 0.6 | the paper's default for a new concept |
| ceiling | 0.06 | not measured; it leaves room for an r2 of up to 6 % |
"""

# Factor on the bytes of the statistics that are computed from the shapes. Measured on the CPU, on
# SD1.5 and SDXL: the peak was 0.96 to 1.02 times the computed bytes; 2026-11-29.
MEMORY_RESERVE = 1.1

# Bytes for each weight of the largest layer while what stands out at a step is set aside: the
# weight, up to five more arrays of float32, and the places of what is above zero. Measured on the
# CPU, on SD1.5 and SDXL, beside the work arrays and the log: 34; 2026-11-29.
STEP_BYTES = 36

# Bytes for each weight of the largest layer while the steps of a concept are added up and ranked:
# two arrays of float32, a counter, and what sorting takes. Computed from the shapes; 2026-11-28.
RANKING_BYTES = 36

# Concepts that are ranked at the same time from merged statistics. Each takes 5 bytes for every
# weight of the largest layer, 33 MB on SDXL (computed from the shapes, not measured); 2026-11-28.
RANKED_AT_ONCE = 16

# Concepts up to which the report tells what each two of them share. Not measured; 2026-11-21.
MOST_PAIRED = 64

# Rows of a chart of the report: concepts, and pairs of concepts. Chosen to fit the picture.
CHART_CONCEPTS = 24
CHART_PAIRS = 12

# Share of common connections above which two concepts are said to be hard to tell apart.
# Not measured; 2026-11-21.
ALIKE = 0.5

# Pruned share of what a concept chose below which the report says that hardly anything is pruned.
# Not measured; 2026-11-21.
HARDLY_PRUNED = 0.1

# Pruned share of all candidate weights above which the report warns of damage.
# Not measured; 2026-11-21.
MUCH_PRUNED = 0.1

# All that goes into the provenance of a patch: none of the above changes one.
IN_PROVENANCE: dict[str, float | int | str] = {}
