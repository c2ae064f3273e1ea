"""What the processes of `warm.OPEN_CLIP` find imported beside what `warm_imports` names."""

import open_clip as open_clip
import transformers as transformers
