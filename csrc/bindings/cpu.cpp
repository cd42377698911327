// fastssl._cpu: the C++ kernels, on raw addresses; fastssl.ops checks what it passes.
#include "../cpu/augment.h"
#include "../cpu/block_masking.h"
#include "../cpu/clip_loss.h"
#include "../cpu/decode_ab.h"
#include "../cpu/distillation_loss.h"
#include "../cpu/ema_update.h"
#include "../cpu/encode_ab.h"
#include "../cpu/enqueue.h"
#include "../cpu/info_nce.h"
#include "../cpu/isa.h"
#include "../cpu/knn_classify.h"
#include "../cpu/lab_to_rgb.h"
#include "../cpu/nt_xent.h"
#include "../cpu/pages.h"
#include "../cpu/propagate_labels.h"
#include "../cpu/queue_info_nce.h"
#include "../cpu/random_masking.h"
#include "../cpu/restore_patches.h"
#include "../cpu/rgb_to_lab.h"
#include "../cpu/siglip_loss.h"
#include "../cpu/sinkhorn_knopp.h"
#include "../cpu/take_patches.h"
#include "../cpu/tiles.h"
#include "../cpu/update_center.h"
#include "bind.h"

namespace py = pybind11;
using namespace fastssl;

PYBIND11_MODULE(_cpu, m) {
    m.def("isa", [] { return isa_name(current_isa()); });
    m.def("supported_isa", [] { return isa_name(supported_isa()); });
    m.def("set_isa", [](const std::string& name) {
        for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx})
            if (name == isa_name(isa)) return set_isa(isa);
        throw std::invalid_argument("unknown instruction set '" + name + "': choose baseline, avx2, avx512, avx512bf16 or amx");
    });

    m.def("release_kept", &release_kept);

    bind(m, "augment", +[] { return FASTSSL_SELECT(augment); });
    bind(m, "block_masking", +[] { return FASTSSL_SELECT(block_masking); });
    bind(m, "clip_loss_backward", +[] { return FASTSSL_SELECT_BF16(clip_loss_backward); });
    bind(m, "clip_loss_forward", +[] { return FASTSSL_SELECT_BF16(clip_loss_forward); });
    bind(m, "decode_ab", +[] { return FASTSSL_SELECT(decode_ab); });
    bind(m, "distillation_loss_backward", +[] { return FASTSSL_SELECT(distillation_loss_backward); });
    bind(m, "distillation_loss_forward", +[] { return FASTSSL_SELECT(distillation_loss_forward); });
    bind(m, "ema_update", +[] { return FASTSSL_SELECT(ema_update); });
    bind(m, "encode_ab", +[] { return FASTSSL_SELECT(encode_ab); });
    bind(m, "enqueue", +[] { return FASTSSL_SELECT(enqueue); });
    bind(m, "info_nce_backward", +[] { return FASTSSL_SELECT_BF16(info_nce_backward); });
    bind(m, "info_nce_forward", +[] { return FASTSSL_SELECT_BF16(info_nce_forward); });
    bind(m, "knn_classify", +[] { return FASTSSL_SELECT(knn_classify); });
    bind(m, "lab_to_rgb", +[] { return FASTSSL_SELECT(lab_to_rgb); });
    bind(m, "nt_xent_backward", +[] { return FASTSSL_SELECT_BF16(nt_xent_backward); });
    bind(m, "nt_xent_forward", +[] { return FASTSSL_SELECT_BF16(nt_xent_forward); });
    bind(m, "propagate_labels", +[] { return FASTSSL_SELECT(propagate_labels); });
    bind(m, "queue_info_nce_backward", +[] { return FASTSSL_SELECT_BF16(queue_info_nce_backward); });
    bind(m, "queue_info_nce_forward", +[] { return FASTSSL_SELECT_BF16(queue_info_nce_forward); });
    bind(m, "random_masking", +[] { return FASTSSL_SELECT(random_masking); });
    bind(m, "restore_patches_backward", +[] { return FASTSSL_SELECT(restore_patches_backward); });
    bind(m, "restore_patches_forward", +[] { return FASTSSL_SELECT(restore_patches_forward); });
    bind(m, "rgb_to_lab", +[] { return FASTSSL_SELECT(rgb_to_lab); });
    bind(m, "siglip_loss_backward", +[] { return FASTSSL_SELECT_BF16(siglip_loss_backward); });
    bind(m, "siglip_loss_forward", +[] { return FASTSSL_SELECT_BF16(siglip_loss_forward); });
    bind(m, "sinkhorn_knopp", +[] { return FASTSSL_SELECT(sinkhorn_knopp); });
    bind(m, "take_patches_backward", +[] { return FASTSSL_SELECT(take_patches_backward); });
    bind(m, "take_patches_forward", +[] { return FASTSSL_SELECT(take_patches_forward); });
    bind(m, "tiles", +[] { return FASTSSL_SELECT(tiles); });
    bind(m, "update_center", +[] { return FASTSSL_SELECT(update_center); });
}
