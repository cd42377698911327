// fastssl._cpu: the C++ kernels, on raw addresses; fastssl.ops checks what it passes.
#include "../cpu/decode_ab.h"
#include "../cpu/ema_update.h"
#include "../cpu/encode_ab.h"
#include "../cpu/isa.h"
#include "../cpu/knn_classify.h"
#include "../cpu/lab_to_rgb.h"
#include "../cpu/nt_xent.h"
#include "../cpu/propagate_labels.h"
#include "../cpu/random_masking.h"
#include "../cpu/rgb_to_lab.h"
#include "bind.h"

namespace py = pybind11;
using namespace fastssl;

PYBIND11_MODULE(_cpu, m) {
    m.def("isa", [] { return isa_name(current_isa()); });
    m.def("supported_isa", [] { return isa_name(supported_isa()); });
    m.def("set_isa", [](const std::string& name) {
        for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
            if (name == isa_name(isa)) return set_isa(isa);
        throw std::invalid_argument("unknown instruction set '" + name + "': choose baseline, avx2 or avx512");
    });

    bind(m, "decode_ab", +[] { return FASTSSL_SELECT(decode_ab); });
    bind(m, "ema_update", +[] { return FASTSSL_SELECT(ema_update); });
    bind(m, "encode_ab", +[] { return FASTSSL_SELECT(encode_ab); });
    bind(m, "knn_classify", +[] { return FASTSSL_SELECT(knn_classify); });
    bind(m, "lab_to_rgb", +[] { return FASTSSL_SELECT(lab_to_rgb); });
    bind(m, "nt_xent_backward", +[] { return FASTSSL_SELECT(nt_xent_backward); });
    bind(m, "nt_xent_forward", +[] { return FASTSSL_SELECT(nt_xent_forward); });
    bind(m, "propagate_labels", +[] { return FASTSSL_SELECT(propagate_labels); });
    bind(m, "random_masking", +[] { return &random_masking; });
    bind(m, "rgb_to_lab", +[] { return FASTSSL_SELECT(rgb_to_lab); });
}
