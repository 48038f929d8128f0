"""The rows, by subject."""

from tests.compatibility.rows.loops import LOOPS
from tests.compatibility.rows.models import MODELS
from tests.compatibility.rows.optimizers import OPTIMIZERS
from tests.compatibility.rows.precision import PRECISION
from tests.compatibility.rows.resuming import RESUMING

SUBJECTS = {
    "Models": MODELS,
    "Optimizers and schedulers": OPTIMIZERS,
    "Training loops": LOOPS,
    "Mixed precision and clipping": PRECISION,
    "Saving, resuming, and changes between steps": RESUMING,
}
ROWS = [row for rows in SUBJECTS.values() for row in rows]
